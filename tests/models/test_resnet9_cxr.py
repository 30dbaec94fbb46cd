from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import chest_xray_resnet9

pytest.importorskip("torchvision")


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_twelve_group_norms_and_no_batch_norm() -> None:
    model = chest_xray_resnet9()
    assert count(model, nn.GroupNorm) == 12
    assert {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)} == {32}
    assert count(model, nn.modules.batchnorm._BatchNorm) == count(model, nn.ReLU) == 0
    assert count(model, nn.Mish) == 5
    assert sum(p.numel() for p in model.parameters()) == 4_909_896


def test_pictures_of_other_channels_are_refused_with_the_fix() -> None:
    with pytest.raises(PrivacyConfigError, match=r"chest_xray_resnet9 got images of 1 channels.*in_channels=1"):
        chest_xray_resnet9()(torch.zeros(2, 1, 64, 64))


def test_parameters_counted_by_hand() -> None:
    """Stem, and of each stage two convolutions, their norms, and from the second on a shortcut with its norm."""
    total = 3 * 64 * 49 + 2 * 64
    for c_in, c in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += 9 * c_in * c + 9 * c * c + 4 * c + (c_in * c + 2 * c if c_in != c else 0)
    assert total + 512 * 8 + 8 == 4_909_896


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_device_independence_of_size(channels: int) -> None:
    model = chest_xray_resnet9(5, channels)
    assert model(torch.rand(2, channels, 32, 48)).shape == (2, 5)


@pytest.mark.parametrize("wrong", [(0, 3), (8, 0)])
def test_numbers_below_one_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(PrivacyConfigError, match="at least 1"):
        chest_xray_resnet9(*wrong)


def test_clipped_sum_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    model, bound = chest_xray_resnet9(3, 1), 0.7
    images, labels = torch.rand(4, 1, 32, 32), torch.randint(0, 2, (4, 3)).float()

    def losses(index: slice) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(images[index]), labels[index])

    expected = [torch.zeros_like(p) for p in model.parameters()]
    for one in range(4):
        found = torch.autograd.grad(losses(slice(one, one + 1)), list(model.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in found))  # type: ignore[arg-type]
        for total, g in zip(expected, found, strict=True):
            total += g * min(1.0, bound / float(norm))
    with GradientEngine(model, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(losses(slice(None)), 4)
        engine.write_gradients()
    distance = torch.sqrt(sum((p.grad - e).square().sum() for p, e in zip(model.parameters(), expected, strict=True)))  # type: ignore
    size = torch.sqrt(sum(e.square().sum() for e in expected))  # type: ignore[arg-type]
    assert distance < 1e-4 * size

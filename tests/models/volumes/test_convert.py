"""2D networks made volumetric: the three kinds of convolution by their definitions, and as privacy units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import ACSConv3d, SliceEncoder, VolumeNet, volumetric
from tests.gradients.oracle import clipped_sum, relative_error, squared_loss, unit_gradients

KINDS = ["conv3d", "acs", "2.5d"]


def volumes(n: int = 3, size: tuple[int, int, int] = (6, 7, 8), channels: int = 1) -> Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("outputs, sizes", [(8, (3, 3, 2)), (6, (2, 2, 2)), (2, (1, 1))])
@pytest.mark.parametrize("bias", [True, False])
def test_acs_is_one_2d_kernel_shared_out_over_three_planes(outputs: int, sizes: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    flat = nn.Conv2d(2, outputs, 3, stride=2, padding=1, bias=bias).double()
    new, x = ACSConv3d(flat), volumes(channels=2)
    assert [conv.out_channels for conv in new.planes] == list(sizes)
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in flat.parameters())
    axes, paddings = (2, 3, 4), ((0, 1, 1), (1, 0, 1), (1, 1, 0))
    biases = flat.bias.split(sizes) if bias else [None] * len(sizes)
    parts = zip(flat.weight.split(sizes), biases, axes[: len(sizes)], paddings[: len(sizes)], strict=True)
    truth = torch.cat([F.conv3d(x, w.unsqueeze(axis), b, 2, padding) for w, b, axis, padding in parts], 1)
    torch.testing.assert_close(new(x), truth)


def test_planes_of_a_volume_see_what_the_2d_network_sees() -> None:
    """2.5D kernels and pooling along two axes: each plane by itself is the 2D network."""
    torch.manual_seed(0)
    flat = nn.Conv2d(1, 4, 3, padding=1).double()
    x = volumes()
    truth = torch.stack([flat(x[:, :, z]) for z in range(x.shape[2])], 2)
    torch.testing.assert_close(volumetric(nn.Sequential(flat), "2.5d")(x), truth)


def test_a_constant_volume_along_an_axis_looks_the_same_to_the_inflated_kernel() -> None:
    torch.manual_seed(0)
    flat = nn.Conv2d(1, 4, 3).double()
    plane = volumes()[:, :, 0]
    repeated = plane.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    truth = flat(plane).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(volumetric(nn.Sequential(flat), "conv3d")(repeated), truth)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_beside_convolutions_become_volumetric(kind: str) -> None:
    layers = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.1),
        nn.AvgPool2d((2, 1)),
    ]
    new = volumetric(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), kind)  # type: ignore[arg-type]
    assert new(torch.randn(2, 1, 8, 8, 8)).shape == (2, 8, 1, 1, 1)
    assert not any(type(m).__name__.endswith("2d") for m in new.modules())


def test_a_network_of_timm_becomes_volumetric() -> None:
    pytest.importorskip("timm")
    model = VolumeNet("test_resnet", "acs", 3)
    assert model(torch.randn(1, 1, 32, 32, 32)).shape == (1, 3)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize(
    "layer, kind, match",
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "acs", r"0 \(Conv2d\): a grouped"),
        (nn.Conv2d(4, 4, 3), "acs", r"0 \(Conv2d\): planes stay aligned only if"),
        (nn.Conv2d(4, 4, 3, padding="same"), "conv3d", "pads otherwise"),
        (nn.ConvTranspose2d(4, 4, 3), "conv3d", "ConvTranspose2d.*no volumetric counterpart"),
        (nn.ReLU(), "3d", "choose 'conv3d', 'acs' or '2.5d'"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(layer: nn.Module, kind: str, match: str) -> None:
    with pytest.raises(PrivacyConfigError, match=match):
        volumetric(nn.Sequential(layer), kind)  # type: ignore[arg-type]


def test_volumes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unsqueeze\(1\)"):
        VolumeNet(SliceEncoder())(torch.zeros(2, 8, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_sum_is_that_of_a_loop_over_volumes(kind: str) -> None:
    torch.manual_seed(0)
    model, x = VolumeNet(SliceEncoder(1, (8, 16), stem=4), kind).double(), volumes()  # type: ignore[arg-type]
    y = torch.linspace(-1, 1, 3, dtype=x.dtype)
    gradients = unit_gradients(model, squared_loss, x, y)
    bound = sorted(float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients)[1]
    truth = clipped_sum(gradients, bound, "flat", range(len(gradients[0])))
    with GradientEngine(model, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(model, x, y), 3)
        assert relative_error(engine.clipped_sum(), truth) < 1e-5

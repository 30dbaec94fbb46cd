"""Localisation and transfer: boxes hold all foreground, copies are exact, samples stay apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import EncoderClassifier, MoNet, UNet, copy_encoder, foreground_box, localise
from tests.gradients.oracle import relative_error, unit_gradients


def scattered(n: int, sides: tuple[int, ...], seed: int = 0) -> Tensor:
    """Masks of a few voxels anywhere, at the border too; the last one is empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(n, *sides, generator=generator) < 0.01).long()
    masks[0].view(-1)[0] = masks[0].view(-1)[-1] = 1
    masks[-1] = 0
    return masks


@pytest.mark.parametrize("margin", [0, 1, 3])
@pytest.mark.parametrize("sides", [(12, 9), (7, 12, 10)])
def test_a_crop_holds_all_predicted_foreground(sides: tuple[int, ...], margin: int) -> None:
    masks = scattered(6, sides)
    crops = localise(torch.randn(6, 2, *sides), masks, (8,) * len(sides), margin)
    assert crops.images.shape == (6, 2, *(8,) * len(sides))
    assert crops.empty.tolist() == [int(mask.sum()) == 0 for mask in masks]
    for mask, box in zip(masks, crops.boxes, strict=True):
        inside = mask[tuple(slice(*pair) for pair in box)]
        assert inside.sum() == mask.sum()
        if mask.any():
            for axis, (start, stop) in enumerate(box):
                along = mask.amax([a for a in range(len(sides)) if a != axis]).nonzero()
                assert start == max(int(along.min()) - margin, 0)
                assert stop == min(int(along.max()) + 1 + margin, sides[axis])


def test_a_crop_of_its_own_size_is_the_region_itself() -> None:
    images, masks = torch.randn(1, 1, 10, 10, 10), torch.zeros(1, 10, 10, 10)
    masks[0, 3:7, 2:6, 5:9] = 1
    crops = localise(images, masks, (6, 6, 6), margin=1)
    assert crops.boxes == (((2, 8), (1, 7), (4, 10)),)
    torch.testing.assert_close(crops.images, images[:, :, 2:8, 1:7, 4:10])
    torch.testing.assert_close(crops.masks, masks[:, 2:8, 1:7, 4:10])


def test_an_empty_mask_falls_back_to_the_centre_and_is_counted() -> None:
    images = torch.randn(2, 1, 8, 6)
    crops = localise(images, torch.zeros(2, 8, 6), (4, 4))
    assert crops.empty.all()
    torch.testing.assert_close(crops.images, images[:, :, 2:6, 1:5])
    assert localise(images, torch.zeros(2, 8, 6), (16, 4)).boxes[0] == ((0, 8), (1, 5))
    assert foreground_box(torch.zeros(3, 3)) is None
    assert localise(images[:0], torch.zeros(0, 8, 6), (4, 4)).images.shape == (0, 1, 4, 4)


def test_a_crop_does_not_depend_on_the_other_samples() -> None:
    images, masks = torch.randn(5, 1, 12, 12), scattered(5, (12, 12))
    alone = localise(images[:1], masks[:1], (6, 6)).images
    assert torch.equal(localise(images, masks, (6, 6)).images[:1], alone)


@pytest.mark.parametrize("network", [UNet, MoNet])
@pytest.mark.parametrize("dims", [2, 3])
def test_weights_are_copied_exactly(network: Any, dims: int) -> None:
    source = network(1, 3, dims=dims, filters=4, depth=1)
    target = EncoderClassifier(network(1, 3, dims=dims, filters=4, depth=1).encoder)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    copy_encoder(source, target)
    for (name, one), (other, two) in zip(
        source.encoder.state_dict().items(), target.encoder.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)
    x = torch.randn(2, 1, *(8,) * dims)
    source.eval(), target.eval()  # noqa: B018
    assert torch.equal(source.encoder(x)[-1].flatten(2).mean(2) @ target.head.weight.T + target.head.bias, target(x))
    next(source.parameters()).data.zero_()  # a copy, not the same object
    assert next(target.parameters()).any()


@pytest.mark.parametrize("other", [{"filters": 8}, {"depth": 2}, {"in_channels": 2}])
def test_a_partial_copy_is_refused(other: dict[str, int]) -> None:
    source = UNet(**{"filters": 4, "depth": 1, **other})
    target = EncoderClassifier(UNet(filters=4, depth=1).encoder)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(PrivacyConfigError, match="same class"):
        copy_encoder(source, target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    with pytest.raises(PrivacyConfigError, match="same class"):
        copy_encoder(MoNet(filters=4, depth=1), target)


def test_mask_weighted_pooling() -> None:
    network = EncoderClassifier(UNet(1, 1, filters=4, depth=1).encoder, pooling="mask").eval()
    images, masks = torch.randn(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    masks[0, :, 2:4, 4:6] = 1  # one position of the bottleneck
    masks[1] = 1
    features = network.encoder(images)[-1]
    expected = torch.stack([features[0, :, 1, 2], features[1].mean((1, 2)), features[2].mean((1, 2))])
    torch.testing.assert_close(network(torch.cat([images, masks], 1)), network.head(expected))


@pytest.mark.parametrize("pooling", ["mean", "mask"])
@pytest.mark.parametrize("dims", [2, 3])
def test_clipped_sum_is_that_of_a_plain_loop(dims: int, pooling: Any) -> None:
    torch.manual_seed(0)
    module: nn.Module = EncoderClassifier(UNet(dims=dims, filters=4, depth=1).encoder, 2, pooling, reconstruction=True)
    module = module.double()
    channels = 2 if pooling == "mask" else 1
    x = torch.rand(3, channels, *(8, 4, 4)[:dims], dtype=torch.float64)
    x[1, 1:] = 0  # an empty mask
    y = torch.tensor([0, 1, 1])

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits, rebuilt = module(x)
        return F.cross_entropy(logits, y) + F.mse_loss(rebuilt, x[:, :1])

    gradients = unit_gradients(module, loss, x, y)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = 0.7 * min(norms)
    truth = [
        sum(bound / n * unit[k] for n, unit in zip(norms, gradients, strict=True)) for k in range(len(gradients[0]))
    ]
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(loss(module, x, y), len(x))
        assert relative_error(engine.clipped_sum(), truth) < 1e-4


def test_one_number_is_the_size_of_all_sides() -> None:
    torch.manual_seed(0)
    images, masks = torch.randn(2, 1, 8, 8, 8), (torch.rand(2, 8, 8, 8) > 0.9).long()
    assert torch.equal(localise(images, masks, 4).images, localise(images, masks, (4, 4, 4)).images)


def test_reconstruction_is_made_in_training_only() -> None:
    network = EncoderClassifier(MoNet(1, dims=3, filters=4, depth=2).encoder, reconstruction=True)
    x = torch.randn(2, 1, 8, 8, 8)
    assert network(x)[1].shape == x.shape
    assert network.eval()(x).shape == (2, 2)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="one length of at least 1 for each side"):
        localise(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 9), (4, 4))
    with pytest.raises(ValueError, match="one length of at least 1 for each side"):
        localise(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), (4, 4, 4))
    with pytest.raises(ValueError, match=r"size \(0, 0\)"):
        localise(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), 0)
    with pytest.raises(ValueError, match="margin -1"):
        localise(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), (4, 4), -1)
    with pytest.raises(PrivacyConfigError, match="'mask'"):
        EncoderClassifier(UNet().encoder, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_channels="):
        EncoderClassifier(UNet().encoder)(torch.zeros(1, 2, 8, 8))

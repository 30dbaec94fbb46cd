"""Segmentation losses against their formulas, per sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_dp.models import dice_cross_entropy, dice_loss, soft_dice


def data(classes: int, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(n, classes, 5, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, max(classes, 2), (n, 5, 6), generator=generator)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_soft_dice_is_its_formula(classes: int) -> None:
    logits, target = data(classes)
    found = soft_dice(logits, target, smooth=0.5)
    assert found.shape == (4, max(classes - 1, 1))
    for n in range(4):
        for k in range(1, max(classes, 2)):
            p = logits[n, 0].sigmoid() if classes == 1 else logits[n].softmax(0)[k]
            y = (target[n] == k).double()
            expected = (2 * float((p * y).sum()) + 0.5) / (float(p.sum()) + float(y.sum()) + 0.5)
            assert float(found[n, k - 1]) == pytest.approx(expected, rel=1e-12)


def test_one_channel_is_two_with_a_background_of_zero() -> None:
    logits, target = data(1)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(soft_dice(logits, target), soft_dice(both, target))
    torch.testing.assert_close(dice_cross_entropy(logits, target), dice_cross_entropy(both, target))


@pytest.mark.parametrize("function", [dice_loss, dice_cross_entropy])
def test_a_samples_loss_is_its_own(function: object) -> None:
    logits, target = data(3)
    alone = torch.cat([function(logits[n : n + 1], target[n : n + 1]) for n in range(4)])  # type: ignore[operator]
    torch.testing.assert_close(function(logits, target), alone)  # type: ignore[operator]
    assert alone.shape == (4,)


def test_classes_choose_the_masks_that_count() -> None:
    logits, target = data(4)
    torch.testing.assert_close(soft_dice(logits, target, [2]), soft_dice(logits, target)[:, 1:2])
    assert soft_dice(logits, target, range(4)).shape == (4, 4)
    for classes in ([], [4], [-1]):
        with pytest.raises(ValueError, match="0 to 3"):
            soft_dice(logits, target, classes)


def test_empty_masks() -> None:
    target = torch.zeros(1, 5, 6, dtype=torch.int64)
    nothing = torch.full((1, 1, 5, 6), -40.0)
    assert float(dice_loss(nothing, target)) == pytest.approx(0, abs=1e-6)
    unsure = torch.zeros(1, 1, 5, 6, requires_grad=True)
    loss = dice_cross_entropy(unsure, target)
    assert loss.item() == pytest.approx(1 - 1 / 16 + math.log(2))
    loss.backward()
    assert unsure.grad is not None
    assert (unsure.grad > 0).all()


def test_cross_entropy_is_the_mean_over_the_samples_pixels() -> None:
    logits, target = data(3)
    torch.testing.assert_close(
        (dice_cross_entropy(logits, target) - dice_loss(logits, target)).mean(), F.cross_entropy(logits, target)
    )


def test_bad_input_is_explained() -> None:
    logits, target = data(3)
    with pytest.raises(ValueError, match=r"squeeze\(1\)"):
        dice_loss(logits, target.unsqueeze(1))
    with pytest.raises(ValueError, match=r"long\(\)"):
        dice_loss(logits, target.float())


@pytest.mark.parametrize("channels, largest", [(1, 1), (3, 2)])
def test_classes_that_the_logits_do_not_know_are_refused(channels: int, largest: int) -> None:
    logits = torch.zeros(2, channels, 4, 4)
    dice_cross_entropy(logits, torch.full((2, 4, 4), largest))
    for wrong in (largest + 1, -1):
        with pytest.raises(ValueError, match=f"know 0 to {largest}: give the network one output for each class"):
            dice_loss(logits, torch.full((2, 4, 4), wrong))

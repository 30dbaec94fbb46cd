"""Dice of slices and of volumes, against sets of pixels and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_dp.metrics import SegmentationDice
from lightning_dp.metrics.functional.dice import dice, dice_counts


def masks(n: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 4, 5)
    return torch.randint(0, classes, shape, generator=generator), torch.randint(0, classes, shape, generator=generator)


def by_sets(preds: Tensor, target: Tensor, k: int, smooth: float) -> float:
    a = {i for i, v in enumerate(preds.flatten().tolist()) if v == k}
    b = {i for i, v in enumerate(target.flatten().tolist()) if v == k}
    return (2 * len(a & b) + smooth) / (len(a) + len(b) + smooth) if a or b else 1.0


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_slices_and_volumes_are_those_of_sets_of_pixels(smooth: float) -> None:
    preds, target = masks()
    volumes = torch.tensor([3, 0, 3, 0, 0, 9])
    metric = SegmentationDice(3, smooth)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):  # a volume over several batches
        metric.update(preds[part], target[part], volumes[part])
    found = metric.compute()
    slices = [by_sets(preds[i], target[i], k, smooth) for i in range(6) for k in (1, 2)]
    whole = [by_sets(preds[volumes == v], target[volumes == v], k, smooth) for v in (0, 3, 9) for k in (1, 2)]
    assert found["dice"].item() == pytest.approx(sum(slices) / 12)
    assert found["dice_volume"].item() == pytest.approx(sum(whole) / 6)


def test_agrees_with_torchmetrics_where_nothing_is_empty() -> None:
    theirs = pytest.importorskip("torchmetrics.functional.segmentation")
    if not hasattr(theirs, "dice_score"):
        pytest.skip("this torchmetrics has no Dice of slices yet")
    preds, target = masks()
    expected = theirs.dice_score(preds, target, 3, False, average="none", input_format="index")
    torch.testing.assert_close(dice(dice_counts(preds, target, 3), 0.0), expected.double(), atol=1e-6, rtol=0)


def test_empty_slices() -> None:
    empty = torch.zeros(2, 4, 5, dtype=torch.int64)
    wrong = empty.clone()
    wrong[1, 0, :3] = 1
    counts = dice_counts(wrong, empty, 2)
    torch.testing.assert_close(dice(counts, 1.0).flatten(), torch.tensor([1.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(dice(counts, 0.0).flatten(), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_samples_without_a_volume_are_volumes() -> None:
    preds, target = masks()
    metric = SegmentationDice(3)
    metric.update(preds, target)
    found = metric.compute()
    assert found["dice"] == found["dice_volume"]


def test_states_of_two_ranks_add_up_and_an_idle_rank_does_no_harm() -> None:
    preds, target = masks()
    volumes = torch.arange(6) % 2
    whole, left, right, idle = (SegmentationDice(3) for _ in range(4))
    whole.update(preds, target, volumes)
    left.update(preds[:2], target[:2], volumes[:2])
    right.update(preds[2:], target[2:], volumes[2:])
    left.rows = torch.cat([left.rows, right.rows, idle.rows])  # what a reduction by "cat" does
    for name, value in whole.compute().items():
        torch.testing.assert_close(left.compute()[name], value)
    idle.update(preds[:0], target[:0], volumes[:0])
    assert math.isnan(idle.compute()["dice"])


def test_bad_input_is_explained() -> None:
    preds, target = masks(classes=2)
    metric = SegmentationDice(2)
    with pytest.raises(ValueError, match="argmax"):
        metric.update(preds, target[:3])
    with pytest.raises(ValueError, match="0 to 1"):
        metric.update(preds + 1, target)
    with pytest.raises(ValueError, match="0 to 1"):
        metric.update(preds.float(), target)
    with pytest.raises(ValueError, match="for each of 6"):
        metric.update(preds, target, torch.arange(5))
    with pytest.raises(ValueError, match=">= 0"):
        metric.update(preds, target, torch.arange(6) - 1)
    with pytest.raises(ValueError, match="num_classes=1"):
        SegmentationDice(1)
    with pytest.raises(ValueError, match="num_classes=1"):
        dice_counts(preds, target, 1)

"""The count measure: by hand, against the published procedure written out, and over any split of the images."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lightning_dp.metrics import ObjectCountArea
from lightning_dp.metrics.functional import count_area, count_curve, count_hits, object_count_area

CLASSES = 4


def published(preds: list[tuple[Tensor, Tensor]], targets: list[Tensor], start_point: bool = False) -> float:
    """The specification, one detection after the other."""
    left = [[int((truth == label).sum()) for label in range(CLASSES)] for truth in targets]
    objects = sum(map(sum, left))
    found = [(float(s), i, int(c)) for i, (ss, cs) in enumerate(preds) for s, c in zip(ss, cs, strict=True)]
    right, points = 0, [(0.0, 1.0)] if start_point else []
    for taken, (_, image, label) in enumerate(sorted(found, key=lambda one: -one[0]), start=1):
        if left[image][label] > 0:
            left[image][label] -= 1
            right += 1
        points.append((right / objects, right / taken))
    points += [(right / objects + 1e-8, 0.0), (1.0, 0.0)]
    best = [(recall, max(p for _, p in points[i:])) for i, (recall, _) in enumerate(points)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(best, best[1:], strict=False))


def images(n: int, seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Detections with some skill, no score twice, some images with nothing in them or nothing found."""
    draw = random.Random(seed)
    preds, targets = [], []
    for _ in range(n):
        truth = [draw.randrange(CLASSES) for _ in range(draw.randrange(5))]
        found = [c for c in truth if draw.random() < 0.7] + [draw.randrange(CLASSES) for _ in range(draw.randrange(3))]
        scores = [draw.random() for _ in found]
        preds.append((torch.tensor(scores, dtype=torch.float32), torch.tensor(found, dtype=torch.int64)))
        targets.append(torch.tensor(truth, dtype=torch.int64))
    return preds, targets


def dicts(preds: list[tuple[Tensor, Tensor]], targets: list[Tensor]) -> tuple[list[dict], list[dict]]:
    return [{"scores": s, "labels": c} for s, c in preds], [{"labels": t} for t in targets]


def test_a_surplus_duplicate_is_wrong() -> None:
    scores, labels = torch.tensor([0.5, 0.9, 0.7, 0.8]), torch.tensor([1, 1, 0, 1])
    assert count_hits(scores, labels, torch.tensor([1, 1, 2])).tolist() == [False, True, False, True]


def test_curve_by_hand() -> None:
    """Right, wrong, right of four objects: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2; the maximum from the right."""
    curve = count_curve(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]), 4)
    torch.testing.assert_close(curve.recall[:3], torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(curve.precision[:3], torch.tensor([1, 2 / 3, 2 / 3], dtype=torch.float64))
    assert curve.precision[3:].tolist() == [0, 0]
    # from recall 1/4 to 1/2 at precision 2/3; the start point adds a quarter at precision 1
    assert float(count_area(curve)) == pytest.approx(1 / 6)
    started = count_curve(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]), 4, start_point=True)
    assert float(count_area(started)) == pytest.approx(1 / 4 + 1 / 6)


@pytest.mark.parametrize("objects", [1, 2, 20])
def test_perfect_counts(objects: int) -> None:
    """As published a detector without fault misses the strip before its first detection: 1 - 1/objects."""
    preds = [(torch.linspace(0.9, 0.1, objects), torch.zeros(objects, dtype=torch.int64))]
    targets = [torch.zeros(objects, dtype=torch.int64)]
    assert float(object_count_area(preds, targets)) == pytest.approx(1 - 1 / objects)
    assert float(object_count_area(preds, targets, start_point=True)) == 1.0


@pytest.mark.parametrize("start_point", [False, True])
def test_nothing_found_has_no_area(start_point: bool) -> None:
    nothing = (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    truth = [torch.tensor([0, 1])]
    assert float(object_count_area([nothing], truth, start_point)) == pytest.approx(0, abs=1e-8)
    metric = ObjectCountArea(CLASSES, start_point)
    metric.update(*dicts([nothing], truth))
    assert float(metric.compute()) == pytest.approx(0, abs=1e-7)


def test_swapped_counts_do_not_cancel() -> None:
    """Over both images the counts are right, in neither image they are."""
    preds = [(torch.tensor([0.9]), torch.tensor([0])), (torch.tensor([0.8]), torch.tensor([1]))]
    assert float(object_count_area(preds, [torch.tensor([1]), torch.tensor([0])], True)) == pytest.approx(0, abs=1e-7)
    assert float(object_count_area(preds, [torch.tensor([0]), torch.tensor([1])], True)) == pytest.approx(1)


@pytest.mark.parametrize("start_point", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_as_published(seed: int, start_point: bool) -> None:
    preds, targets = images(40, seed)
    assert float(object_count_area(preds, targets, start_point)) == pytest.approx(
        published(preds, targets, start_point), abs=2e-8
    )


def test_metric_is_the_function_whatever_the_batches() -> None:
    preds, targets = images(50, 7)
    whole = float(object_count_area(preds, targets))
    for size in (1, 7, 50):
        metric = ObjectCountArea(CLASSES)
        for start in range(0, 50, size):
            metric.update(*dicts(preds[start : start + size], targets[start : start + size]))
        assert float(metric.compute()) == pytest.approx(whole, rel=1e-6)
        for label, area in enumerate(metric.per_class().tolist()):
            only = [(s[c == label], c[c == label]) for s, c in preds]
            assert area == pytest.approx(published(only, [t[t == label] for t in targets], True), rel=1e-6)


def test_ties_do_not_depend_on_the_order_of_images_and_flatter_nobody() -> None:
    preds = [(torch.tensor([0.5]), torch.tensor([0])), (torch.tensor([0.5]), torch.tensor([0]))]
    targets = [torch.tensor([0]), torch.tensor([1])]
    one = float(object_count_area(preds, targets, True))
    assert one == float(object_count_area(preds[::-1], targets[::-1], True))
    # wrong, right: precision 1/2 at recall 1/2; the trapezoid from (0, 1) ... (0, 0.5) to (0.5, 0.5)
    assert one == pytest.approx(0.25)


def test_classes_without_objects_are_unknown() -> None:
    metric = ObjectCountArea(2)
    metric.update([{"scores": torch.tensor([0.5]), "labels": torch.tensor([1])}], [{"labels": torch.tensor([0])}])
    first, second = metric.per_class().tolist()
    assert first == pytest.approx(0, abs=1e-7)
    assert second != second
    empty = ObjectCountArea(2)
    empty.update([{"scores": torch.tensor([0.5]), "labels": torch.tensor([1])}], [{"labels": torch.tensor([]).long()}])
    assert empty.compute().isnan()


def test_bad_input_is_named() -> None:
    metric = ObjectCountArea(2)
    good, truth = {"scores": torch.tensor([0.5]), "labels": torch.tensor([1])}, {"labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="for every image"):
        metric.update([good], [])
    with pytest.raises(ValueError, match="one a detection"):
        metric.update([{**good, "scores": torch.tensor([0.5, 0.4])}], [truth])
    with pytest.raises(ValueError, match="label of a detection is outside 0 .. 1"):
        metric.update([{**good, "labels": torch.tensor([2])}], [truth])
    with pytest.raises(ValueError, match="leave out places that hold no object"):
        metric.update([good], [{"labels": torch.tensor([0, -1])}])
    with pytest.raises(ValueError, match="1 or more"):
        ObjectCountArea(0)
    with pytest.raises(ValueError, match="2 right detections of 1 objects"):
        count_curve(torch.tensor([0.5, 0.6]), torch.tensor([True, True]), 1)

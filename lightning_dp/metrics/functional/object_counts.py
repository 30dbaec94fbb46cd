"""How well detections count objects: a precision-recall curve over counts, blind to where the boxes are.

The measure by which the Oktoberfest Food Dataset (Ziller et al. 2019, arXiv 1912.05007) evaluates detectors. It is **not**
mean average precision: no box is ever compared with another, objects of all classes share one curve, and the curve ends
differently. A detector that counts right and points at the wrong places scores fully.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ("CountCurve", "count_area", "count_curve", "count_hits", "object_count_area")

#: Step in recall after the last detection, where precision falls to 0; part of the published definition.
_STEP = 1e-8


class CountCurve(NamedTuple):
    """Precision over recall as detections are accepted from the most certain one down.

    Attributes:
        recall: Found objects among all objects, ascending, float64.
        precision: Right detections among accepted ones; the largest at this recall or beyond, float64.
        score: Of the detection that ends the step; NaN at points that belong to no detection.
    """

    recall: Tensor
    precision: Tensor
    score: Tensor


def count_hits(scores: Tensor, labels: Tensor, true_labels: Tensor) -> Tensor:
    """Which detections of one image count an object that is there.

    From the most certain one down, a detection is right if its image still has an object of its class that none before
    it took; a surplus one is wrong.

    Args:
        scores: ``(n,)``.
        labels: Classes of the detections, ``(n,)``.
        true_labels: Classes of the objects, ``(m,)``.

    Returns:
        ``(n,)``, bool, in the order given.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    in_order = labels[order]
    same = in_order[:, None] == in_order
    before = same.tril(-1).sum(1)  # more certain ones of the same class
    there = (in_order[:, None] == true_labels).sum(1)
    hits = torch.empty_like(order, dtype=torch.bool)
    hits[order] = before < there
    return hits


def count_curve(scores: Tensor, hits: Tensor, objects: int, start_point: bool = False) -> CountCurve:
    """The curve of detections pooled over images.

    Detections of equal score are taken wrong ones first, so that the curve does not depend on the images' order and no tie
    flatters it; the published evaluation leaves their order to chance.

    Args:
        scores: ``(n,)``.
        hits: Which of them are right, ``(n,)``, bool, see `count_hits`.
        objects: Number of objects in all images.
        start_point: Whether the curve starts at recall 0 with precision 1. The published pooled curve does not: it starts
            at its first detection, so that a detector without any fault scores 1 - 1/objects.

    Raises:
        ValueError: There are more hits than objects.
    """
    if int(hits.sum()) > objects:
        raise ValueError(f"{int(hits.sum())} right detections of {objects} objects: count the objects of every image.")
    order = torch.argsort(hits.to(torch.uint8), stable=True)  # wrong ones first ...
    order = order[torch.argsort(scores[order], descending=True, stable=True)]  # ... among those of one score
    right = hits[order].double().cumsum(0)
    taken = torch.arange(1, len(order) + 1, dtype=torch.float64, device=scores.device)
    recall, precision = right / max(objects, 1), right / taken
    last = recall[-1:] if len(recall) else recall.new_zeros(1)
    nan = torch.full((1,), torch.nan, dtype=torch.float64, device=scores.device)
    begin = [recall.new_zeros(1)] if start_point else []
    ones = [recall.new_ones(1)] if start_point else []
    recall = torch.cat([*begin, recall, (last + _STEP).clamp(max=1.0), last.new_ones(1)])
    precision = torch.cat([*ones, precision, last.new_zeros(2)])
    precision = precision.flip(0).cummax(0).values.flip(0)
    return CountCurve(recall, precision, torch.cat([*([nan] if start_point else []), scores[order].double(), nan, nan]))


def count_area(curve: CountCurve) -> Tensor:
    """Area under the curve by trapezoids, a scalar, float64; 0 if nothing was found."""
    return torch.trapezoid(curve.precision, curve.recall).clamp(min=0.0)


def object_count_area(
    preds: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Tensor],
    start_point: bool = False,
    label: int | None = None,
) -> Tensor:
    """Area under the precision-recall curve of counts over some images.

    Args:
        preds: For each image the scores and the classes of its detections.
        targets: For each image the classes of its objects.
        start_point: See `count_curve`. The published measure of single classes has it, the one of all classes not.
        label: Only detections and objects of this class; None takes all.

    Returns:
        A scalar, float64; NaN if there is no object.

    Example:
        >>> import torch
        >>> found = [(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]))]  # one object of class 1 too many
        >>> object_count_area(found, [torch.tensor([0, 1])], start_point=True).item()
        1.0
    """
    chosen = [
        (scores, labels) if label is None else (scores[labels == label], labels[labels == label])
        for scores, labels in preds
    ]
    truths = [truth if label is None else truth[truth == label] for truth in targets]
    objects = sum(len(truth) for truth in truths)
    if not objects:
        return torch.tensor(torch.nan, dtype=torch.float64)
    hits = [count_hits(*found, truth) for found, truth in zip(chosen, truths, strict=True)]
    return count_area(count_curve(torch.cat([scores for scores, _ in chosen]), torch.cat(hits), objects, start_point))

"""The count measure of the Oktoberfest Food Dataset, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lightning_dp.metrics.functional.object_counts import CountCurve, count_area, count_curve, count_hits

__all__ = ("ObjectCountArea",)


class ObjectCountArea(torchmetrics.Metric):
    """Area under the precision-recall curve of object counts; **not** mean average precision.

    The definition is that of `lightning_dp.metrics.functional.object_counts`: of an image only the number of objects of each
    class counts, not where they are. Takes detections and targets in the form of torchmetrics' ``MeanAveragePrecision``,
    which belongs beside it.

    The states are one score, class and verdict for each detection, exact over ranks, a rank without images included; which
    detection is right is settled within its image when it is added.

    Args:
        num_classes: Number of classes.
        start_point: Whether the pooled curve starts at recall 0 with precision 1. The published one does not, so that a
            detector without any fault scores 1 - 1/objects; the published curves of single classes do.

    Example:
        >>> import torch
        >>> metric = ObjectCountArea(num_classes=2, start_point=True)
        >>> found = {"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 0])}
        >>> metric.update([found], [{"labels": torch.tensor([0, 1])}])
        >>> metric.compute().item()  # half of the objects, all before the first mistake
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor]
    labels: list[Tensor]
    hits: list[Tensor]
    objects: Tensor

    def __init__(self, num_classes: int, start_point: bool = False) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be 1 or more.")
        self.num_classes, self.start_point = num_classes, start_point
        # float32, one dimension: the form in which torchmetrics lets a rank that has nothing take part
        for name in ("scores", "labels", "hits"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("objects", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, preds: Sequence[Mapping[str, Tensor]], target: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images.

        Args:
            preds: For each image ``scores`` and ``labels``, ``(n,)``; further entries (boxes) are not looked at.
            target: For each image ``labels``, ``(m,)``.

        Raises:
            ValueError: Other numbers of images, of scores and labels, or a label outside the classes.
        """
        if len(preds) != len(target):
            raise ValueError(f"detections of {len(preds)} images, objects of {len(target)}: give both for every image.")
        for found, truth in zip(preds, target, strict=True):
            scores, labels = found["scores"].detach().to(self.device), found["labels"].to(self.device)
            true_labels = truth["labels"].to(self.device)
            if scores.shape != labels.shape or scores.ndim != 1:
                raise ValueError(
                    f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both be (n,), one a detection."
                )
            for name, values in (("detection", labels), ("object", true_labels)):
                if len(values) and (int(values.min()) < 0 or int(values.max()) >= self.num_classes):
                    raise ValueError(
                        f"the label of a {name} is outside 0 .. {self.num_classes - 1}: raise num_classes, and leave out "
                        "places that hold no object."
                    )
            self.scores.append(scores.float())
            self.labels.append(labels.float())
            self.hits.append(count_hits(scores, labels, true_labels).float())
            self.objects += torch.bincount(true_labels, minlength=self.num_classes)

    @override
    def compute(self) -> Tensor:
        """The area over all classes, a scalar; NaN without objects."""
        curve, objects = self._curve(None, self.start_point)
        return count_area(curve).float() if objects else torch.tensor(torch.nan, device=self.device)

    def curve(self) -> CountCurve:
        """The pooled curve, over all ranks: a collective under DDP."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._curve(None, self.start_point)[0]

    def per_class(self) -> Tensor:
        """The area of each class by itself, ``(num_classes,)``, over all ranks: a collective under DDP.

        As published these curves start at recall 0 with precision 1, whatever ``start_point`` is. NaN where a class has no
        object.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            found = [self._curve(label, True) for label in range(self.num_classes)]
        areas = [count_area(curve) if objects else torch.tensor(torch.nan) for curve, objects in found]
        return torch.stack([area.float().cpu() for area in areas])

    def _curve(self, label: int | None, start_point: bool) -> tuple[CountCurve, int]:
        nothing = [torch.zeros(0, device=self.device)]  # so that there is something to join
        states: tuple[Any, ...] = (self.scores, self.labels, self.hits)  # lists, or tensors once ranks have met
        scores, labels, hits = (dim_zero_cat(s if isinstance(s, Tensor) else [*nothing, *s]) for s in states)
        if label is None:
            objects = int(self.objects.sum())
        else:
            scores, hits, objects = scores[labels == label], hits[labels == label], int(self.objects[label])
        return count_curve(scores, hits.bool(), objects, start_point), objects

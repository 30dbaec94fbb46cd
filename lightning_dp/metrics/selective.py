"""Selective prediction per group, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor
from typing_extensions import override

from lightning_dp.metrics.base import SummedMetric
from lightning_dp.metrics.estimate import z_score
from lightning_dp.metrics.functional.outcomes import Outcomes, Task
from lightning_dp.metrics.functional.selective import (
    SelectiveCounts,
    selective_counts,
    selective_result,
    selective_zeros,
)
from lightning_dp.metrics.functional.selective_result import SelectiveResult
from lightning_dp.metrics.groups import Groups, Values

__all__ = ("SelectivePrediction",)


class SelectivePrediction(SummedMetric):
    """Risk against coverage: AURC, E-AURC, coverage at a risk and selective accuracy, of each group and of all.

    The definitions are those of `lightning_dp.metrics.functional.selective_result`. All states are counts of fixed size:
    confidences within one of 4,096 cells of log odds count as ties, and ``aurc_error`` is the largest error from that.

    Args:
        task: "binary" or "multiclass".
        num_classes: number of classes.
        class_names: their names.
        groups: the groups; None puts all samples into one.
        coverages: where scalars and tables give the selective accuracy.
        risks: where they give the coverage.
        confidence: level of the intervals.

    Example:
        >>> import torch
        >>> metric = SelectivePrediction("binary")
        >>> metric.update(torch.tensor([0.99, 0.9, 0.4, 0.45]), torch.tensor([1, 1, 0, 1]))
        >>> metric.result().overall.aurc.value
        0.0625
    """

    def __init__(
        self,
        task: Task = "multiclass",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        coverages: Sequence[float] = (0.5, 0.8, 0.9, 1.0),
        risks: Sequence[float] = (0.01, 0.05, 0.1),
        confidence: float = 0.95,
    ) -> None:
        super().__init__()
        if not all(0.0 < c <= 1.0 for c in coverages) or not all(0.0 <= r <= 1.0 for r in risks):
            raise ValueError(f"coverages lie in (0, 1] and risks in [0, 1], got {list(coverages)} and {list(risks)}.")
        z_score(confidence)
        self.outcomes = Outcomes.of(task, num_classes, class_names)
        self.groups = Groups.everybody() if groups is None else groups
        self.coverages, self.risks, self.confidence = tuple(coverages), tuple(risks), confidence
        self._add_states(selective_zeros(len(self.groups), self.outcomes))

    @override
    def update(
        self,
        probs: Tensor,
        targets: Tensor,
        groups: Values | Mapping[str, Values] | None = None,
        scores: Tensor | None = None,
    ) -> None:
        """Adds samples.

        Args:
            probs: (n,) of the positive class, or (n, classes); n may be 0.
            targets: (n,).
            groups: the samples' levels, as `Groups.encode` takes them.
            scores: (n,) confidences in [0, 1]; None takes the largest probability.

        Raises:
            ValueError: NaN or no probabilities, labels outside the range, groups that were not named beforehand.
        """
        ids = self.groups.encode(self._here(groups), len(probs)).to(self.device)
        probs, targets, scores = self._here(probs), self._here(targets), self._here(scores)
        selective_counts(probs, targets, ids, self.outcomes, cast(SelectiveCounts, self._states()), scores)

    @override
    def _result(self, counts: SelectiveCounts) -> SelectiveResult:
        return selective_result(counts, self.groups, self.coverages, self.risks, self.confidence)

    @override
    def result(self) -> SelectiveResult:
        return cast(SelectiveResult, super().result())

"""Calibration per group, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor
from typing_extensions import override

from lightning_dp.metrics.base import SummedMetric
from lightning_dp.metrics.estimate import z_score
from lightning_dp.metrics.functional.calibration import (
    CalibrationCounts,
    calibration_counts,
    calibration_result,
    calibration_scalars,
    calibration_zeros,
)
from lightning_dp.metrics.functional.calibration_result import CalibrationResult
from lightning_dp.metrics.functional.outcomes import Outcomes, Task
from lightning_dp.metrics.groups import Groups, Values

__all__ = ("Calibration",)


class Calibration(SummedMetric):
    """ECE, MCE, adaptive and classwise ECE, Brier score, NLL and reliability diagrams, of each group and of all.

    For one pooled number, torchmetrics' ``CalibrationError`` is enough. The definitions are those of
    `lightning_dp.metrics.functional.calibration_result`. All states are sums of fixed size; only the adaptive ECE depends on
    that: its equal-mass bins are cut between 4,096 cells of equal width in log odds, not between samples.

    Args:
        task: "binary", "multiclass" or "multilabel".
        num_classes: number of classes, or of labels.
        class_names: their names, for tables and pictures.
        groups: the groups; None puts all samples into one.
        n_bins: bins of every binned measure.
        confidence: level of the intervals.

    Example:
        >>> import torch
        >>> metric = Calibration("binary", groups=Groups({"sex": ["female", "male"]}), n_bins=10)
        >>> metric.update(torch.tensor([0.9, 0.2, 0.7]), torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]))
        >>> round(metric.result().row("female").brier.value, 3)
        0.025
    """

    def __init__(
        self,
        task: Task = "multiclass",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        n_bins: int = 15,
        confidence: float = 0.95,
    ) -> None:
        super().__init__()
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {n_bins}: 10 to 20 are usual.")
        z_score(confidence)
        self.outcomes = Outcomes.of(task, num_classes, class_names)
        self.groups = Groups.everybody() if groups is None else groups
        self.n_bins, self.confidence = n_bins, confidence
        self._add_states(calibration_zeros(len(self.groups), self.outcomes, n_bins))

    @override
    def update(self, probs: Tensor, targets: Tensor, groups: Values | Mapping[str, Values] | None = None) -> None:
        """Adds samples.

        Args:
            probs: (n,) of the positive class, (n, classes), or (n, labels); n may be 0.
            targets: (n,) or (n, labels).
            groups: the samples' levels, as `Groups.encode` takes them.

        Raises:
            ValueError: NaN or no probabilities, labels outside the range, groups that were not named beforehand.
        """
        ids = self.groups.encode(self._here(groups), len(probs))
        sums = cast(CalibrationCounts, self._states())
        calibration_counts(self._here(probs), self._here(targets), ids.to(self.device), self.outcomes, sums)

    @override
    def _result(self, counts: CalibrationCounts) -> CalibrationResult:
        return calibration_result(counts, self.groups, self.outcomes, self.confidence)

    @override
    def scalars(self, counts: CalibrationCounts, measures: frozenset[str]) -> dict[str, float] | None:
        return calibration_scalars(counts, self.groups, measures)

    @override
    def result(self) -> CalibrationResult:
        return cast(CalibrationResult, super().result())

"""Fairness between groups, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor
from typing_extensions import override

from lightning_dp.metrics.base import SummedMetric
from lightning_dp.metrics.estimate import z_score
from lightning_dp.metrics.functional.fairness import (
    FairnessCounts,
    fairness_counts,
    fairness_result,
    fairness_scalars,
    fairness_zeros,
)
from lightning_dp.metrics.functional.fairness_result import FairnessResult
from lightning_dp.metrics.functional.histogram import CELLS
from lightning_dp.metrics.functional.outcomes import Outcomes, Task
from lightning_dp.metrics.groups import Groups, Values

__all__ = ("Fairness",)

#: Scores above this size are refused: they would be held on every rank, and twice while ranks exchange them.
_MOST_GIGABYTES = 1.0


class Fairness(SummedMetric):
    """Rates of every group and the gaps between groups: parity, odds, accuracy and AUROC, with intervals.

    The definitions are those of `lightning_dp.metrics.functional.fairness_result`. All states are counts of fixed size:
    everything but AUROC is exact in them. AUROC takes scores within one of 4,096 cells of log odds as ties; each one comes
    with the largest error that can make (``auroc_error``).

    torchmetrics' ``BinaryFairness`` counts a batch without one of the groups wrongly up to version 1.9.0; here groups are
    named beforehand.

    Args:
        groups: the groups.
        task: "binary", "multiclass" or "multilabel".
        num_classes: number of classes, or of labels.
        class_names: their names.
        threshold: a probability above it is a positive prediction (binary task and labels).
        min_count: groups with fewer samples behind a rate are left out of its gaps, by name. 0 leaves nobody out, and a
            gap is NaN with its reason if a group has no rate.
        confidence: level of the intervals.
        n_boot: bootstrap draws behind the intervals of gaps; 0 gives none.
        seed: of the draws.
        auroc: whether AUROC is measured.

    Example:
        >>> import torch
        >>> metric = Fairness(Groups({"sex": ["female", "male"]}))
        >>> metric.update(torch.tensor([0.9, 0.2, 0.7, 0.8]), torch.tensor([1, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
        >>> metric.result().gap("demographic_parity_difference").value
        0.5
    """

    def __init__(
        self,
        groups: Groups,
        task: Task = "binary",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        threshold: float = 0.5,
        min_count: int = 0,
        confidence: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
        auroc: bool = True,
    ) -> None:
        super().__init__()
        if n_boot < 0 or min_count < 0:
            raise ValueError(f"n_boot and min_count must not be negative, got {n_boot} and {min_count}.")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}: it is compared with probabilities.")
        z_score(confidence)
        self.groups, self.outcomes = groups, Outcomes.of(task, num_classes, class_names)
        gigabytes = len(groups) * len(self.outcomes) * CELLS * 16 / 1e9
        if auroc and gigabytes > _MOST_GIGABYTES:
            raise ValueError(
                f"{len(groups)} groups of {len(self.outcomes)} outcomes need {gigabytes:.1f} GB to keep scores for AUROC: "
                "give auroc=False, or measure fewer attributes at once."
            )
        self.threshold, self.min_count, self.confidence = threshold, min_count, confidence
        self.n_boot, self.seed, self.auroc = n_boot, seed, auroc
        self._add_states(fairness_zeros(len(groups), self.outcomes, auroc))

    @override
    def update(self, preds: Tensor, targets: Tensor, groups: Values | Mapping[str, Values] | None) -> None:
        """Adds samples.

        Args:
            preds: probabilities, (n,) of the positive class, (n, classes) or (n, labels), or decisions as whole numbers;
                n may be 0.
            targets: (n,) or (n, labels).
            groups: the samples' levels, as `Groups.encode` takes them.

        Raises:
            ValueError: NaN or no probabilities, labels outside the range, groups that were not named beforehand.
        """
        ids = self.groups.encode(self._here(groups), len(preds))
        preds, targets, ids = self._here(preds), self._here(targets), ids.to(self.device)
        fairness_counts(preds, targets, ids, self.outcomes, cast(FairnessCounts, self._states()), self.threshold)

    @override
    def _result(self, counts: FairnessCounts) -> FairnessResult:
        return fairness_result(
            counts, self.groups, self.outcomes, self.min_count, self.confidence, self.n_boot, self.seed
        )

    @override
    def scalars(self, counts: FairnessCounts, measures: frozenset[str]) -> dict[str, float]:
        return fairness_scalars(counts, self.groups, self.outcomes, measures, self.min_count)

    @override
    def result(self) -> FairnessResult:
        return cast(FairnessResult, super().result())

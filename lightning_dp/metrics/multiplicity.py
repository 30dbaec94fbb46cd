"""Predictive multiplicity per group, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor
from typing_extensions import override

from lightning_dp.metrics.base import SummedMetric
from lightning_dp.metrics.estimate import z_score
from lightning_dp.metrics.functional.abstention import Abstention
from lightning_dp.metrics.functional.multiplicity import (
    MultiplicityCounts,
    multiplicity_counts,
    multiplicity_result,
    multiplicity_zeros,
)
from lightning_dp.metrics.functional.multiplicity_result import MultiplicityResult
from lightning_dp.metrics.functional.outcomes import Outcomes, Task
from lightning_dp.metrics.groups import Groups, Values
from lightning_dp.metrics.tally import MemberTally

__all__ = ("Multiplicity",)


class Multiplicity(SummedMetric):
    """Ambiguity, discrepancy, obscurity, disagreement, viable range, and the ensemble that may abstain, by group.

    The definitions are those of `lightning_dp.metrics.functional.multiplicity_result`. The states are sums over samples of
    fixed size and exact (``viable_range_95`` alone is rounded up to 0.01). Members are heard one after another through a
    tally, on a batch of samples or on all the samples of a rank: neither order needs all predictions at once.

    Args:
        num_members: how many models are compared, the baseline among them.
        task: "binary" or "multiclass".
        num_classes: number of classes.
        class_names: their names.
        groups: the groups; None puts all samples into one.
        threshold: a probability of the positive class above it is a positive prediction.
        rules: rules of abstention to evaluate the ensemble under.
        confidence: level of the intervals.

    Example:
        >>> import torch
        >>> metric = Multiplicity(num_members=2, task="binary")
        >>> tally = metric.tally(targets=torch.tensor([1, 0, 1, 0]))
        >>> tally.add(torch.tensor([0.9, 0.2, 0.8, 0.4]))  # the baseline
        >>> tally.add(torch.tensor([0.8, 0.1, 0.3, 0.3]))
        >>> metric.update(tally)
        >>> metric.result().overall.ambiguity.value
        0.25
    """

    def __init__(
        self,
        num_members: int,
        task: Task = "multiclass",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        threshold: float = 0.5,
        rules: Sequence[Abstention] = (Abstention("unanimity"), Abstention("binomial", 0.05)),
        confidence: float = 0.95,
    ) -> None:
        super().__init__()
        if num_members < 1:
            raise ValueError(f"num_members must be at least 1, got {num_members}.")
        if len({rule.name for rule in rules}) != len(rules):
            raise ValueError(f"each rule may be given once, got {[rule.name for rule in rules]}.")
        z_score(confidence)
        self.outcomes = Outcomes.of(task, num_classes, class_names)
        self.groups = Groups.everybody() if groups is None else groups
        self.num_members, self.threshold, self.rules, self.confidence = num_members, threshold, tuple(rules), confidence
        if task == "multilabel":
            raise ValueError('multiplicity needs task="binary" or "multiclass": measure each label as a binary task.')
        self._add_states(multiplicity_zeros(len(self.groups), num_members, len(self.rules)))

    def tally(
        self,
        targets: Tensor | None = None,
        groups: Values | Mapping[str, Values] | None = None,
        num_samples: int | None = None,
    ) -> MemberTally:
        """A tally of some samples, to which the members' predictions are then added one after another.

        Args:
            targets: (n,) truth; None where it is unknown.
            groups: the samples' levels, as `Groups.encode` takes them.
            num_samples: n, where there are no targets.

        Raises:
            ValueError: the number of samples is unknown, or the targets or groups are not what they should be.
        """
        n = len(targets) if targets is not None else num_samples
        if n is None:
            raise ValueError("without targets a tally needs num_samples, how many samples the members predict.")
        ids = self.groups.encode(self._here(groups), n).to(self.device)
        return MemberTally(self.outcomes, ids, len(self.groups), self._here(targets), self.threshold)

    @override
    def update(self, tally: MemberTally) -> None:
        """Adds the samples of a tally of all members.

        Raises:
            ValueError: the tally has heard another number of members.
        """
        if len(tally) != self.num_members:
            raise ValueError(
                f"the tally has heard {len(tally)} members, the metric compares {self.num_members}: call tally.add once for "
                "each member, the baseline first."
            )
        multiplicity_counts(tally, self.rules, cast(MultiplicityCounts, self._states()))

    @override
    def _result(self, counts: MultiplicityCounts) -> MultiplicityResult:
        return multiplicity_result(counts, self.groups, self.rules, self.confidence)

    @override
    def result(self) -> MultiplicityResult:
        return cast(MultiplicityResult, super().result())

"""What a set of models says about some samples, heard one model after another."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dp.metrics.functional.histogram import add_up
from lightning_dp.metrics.functional.outcomes import Outcomes, same_length

__all__ = ("MemberTally",)


class MemberTally:
    """Votes, ranges and disagreements over the members of a set of models, on fixed samples.

    What it keeps of a sample does not grow with the number of members: a count for each class, the lowest and the highest
    probability of each, and how often the baseline was contradicted. Of a member it keeps two counts for each group.

    Args:
        outcomes: a binary or multi-class task.
        group_ids: (n,) numbers of the samples' groups.
        num_groups: how many groups there are.
        targets: (n,) truth, or None: then there are no accuracies.
        threshold: a probability of the positive class above it is a positive prediction.

    Raises:
        ValueError: several labels, targets outside the range or of another length.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        group_ids: Tensor,
        num_groups: int,
        targets: Tensor | None = None,
        threshold: float = 0.5,
    ) -> None:
        if outcomes.task == "multilabel":
            raise ValueError('multiplicity needs task="binary" or "multiclass": measure each label as a binary task.')
        self.outcomes, self.group_ids, self.num_groups, self.threshold = outcomes, group_ids, num_groups, threshold
        self.targets = None if targets is None else outcomes.targets(targets).reshape(-1)
        if self.targets is not None:
            same_length(group_ids, self.targets)
        n, device = len(group_ids), group_ids.device
        classes = 2 if outcomes.task == "binary" else len(outcomes)
        self.votes = torch.zeros(n, classes, dtype=torch.int64, device=device)
        self.low = torch.ones(n, len(outcomes), dtype=torch.float64, device=device)
        self.high = torch.zeros_like(self.low)
        self.baseline = torch.zeros(n, dtype=torch.int64, device=device)
        self.contradicted = torch.zeros(n, dtype=torch.int64, device=device)
        self.disagreements: list[Tensor] = []  # of each member: (groups,) samples on which it contradicts the baseline
        self.errors: list[Tensor] = []  # of each member: (groups,) samples it gets wrong
        self.with_probabilities = True

    def __len__(self) -> int:
        return len(self.disagreements)

    def add(self, preds: Tensor) -> None:
        """Hears one more member. The first one heard is the baseline.

        Args:
            preds: its probabilities, (n,) of the positive class or (n, classes), or its decisions as whole numbers (n,).

        Raises:
            ValueError: another number of samples, or predictions that no measure should be made of.
        """
        preds = preds.detach().to(self.group_ids.device)
        decided = self.outcomes.decisions(preds, self.threshold).reshape(-1)
        if len(decided) != len(self.group_ids):
            raise ValueError(
                f"member {len(self)} predicts {len(decided)} samples, the tally has {len(self.group_ids)}."
            )
        if preds.is_floating_point():
            p = self.outcomes.probabilities(preds)
            self.low, self.high = torch.minimum(self.low, p), torch.maximum(self.high, p)
        else:
            self.with_probabilities = False
        if not len(self):
            self.baseline = decided
        differs = (decided != self.baseline).long()
        self.votes.scatter_add_(1, decided[:, None], torch.ones_like(decided)[:, None])
        self.contradicted = self.contradicted + differs
        self.disagreements.append(add_up(self.group_ids, differs, differs.new_zeros(self.num_groups)))
        wrong = torch.zeros_like(decided) if self.targets is None else (decided != self.targets).long()
        self.errors.append(add_up(self.group_ids, wrong, wrong.new_zeros(self.num_groups)))

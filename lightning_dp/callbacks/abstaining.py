"""An ensemble that answers where its members agree, and otherwise leaves the sample to an expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.callbacks.members import Members, Output, Predict, forward_of, member_probabilities, own_weights_kept
from lightning_dp.metrics import Abstention, answer
from lightning_dp.metrics.functional.outcomes import Outcomes, Task

__all__ = ("AbstainingEnsemble", "EnsembleAnswer")

#: Gets a batch and the numbers of the samples left to it, and returns their classes.
Expert = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class EnsembleAnswer:
    """What the ensemble says of a batch of n samples.

    Attributes:
        classes: (n,) int64, the class, the expert's where there is one; -1 where nobody has answered.
        deferred: (n,) bool, where the ensemble abstained.
        votes: (n, classes) int64, how many members voted for each class.
        probs: mean of the members' probabilities, in the shape that a member gives.
    """

    classes: Tensor
    deferred: Tensor
    votes: Tensor
    probs: Tensor

    @property
    def coverage(self) -> float:
        """Share of samples the ensemble answered; NaN without samples."""
        return float((~self.deferred).double().mean())


class AbstainingEnsemble:
    """Predicts by the members' vote, or abstains and asks an expert.

    **Guarantee**: its answers are a function of the members, so they cost what ``members.budget()`` says, and no more, for
    any number of samples that are not training data.

    Args:
        module: has the members' architecture; it keeps its own weights.
        members: the members.
        rule: when the ensemble abstains; None: unless its members are unanimous.
        task: "multiclass" or "binary".
        num_classes: number of classes.
        threshold: a probability of the positive class above it is a positive prediction.
        predict: the predictions of a module for a batch; None: it is called on the batch, or on the first item of a tuple.
        output: whether these are ``"logits"`` or ``"probs"``.
        expert: decides the samples left to it, ``(batch, indices) -> classes``; None: they stay open.

    Raises:
        ValueError: members that do not fit the module.
    """

    def __init__(
        self,
        module: nn.Module,
        members: Members,
        rule: Abstention | None = None,
        task: Task = "multiclass",
        num_classes: int | None = None,
        threshold: float = 0.5,
        *,
        predict: Predict | None = None,
        output: Output = "logits",
        expert: Expert | None = None,
    ) -> None:
        members.check(module)
        self.outcomes = Outcomes.of(task, num_classes, None)
        self.rule = Abstention.unanimity() if rule is None else rule
        self.module, self.members, self.threshold = module, members, threshold
        self.predict: Predict = forward_of if predict is None else predict
        self.output, self.expert = output, expert

    @torch.no_grad()
    def __call__(self, batch: Any) -> EnsembleAnswer:
        """The answers for a batch.

        Raises:
            ValueError: predictions that are no probabilities, or an expert that gives another number of classes.
        """
        task = self.outcomes.task
        classes = 2 if task == "binary" else len(self.outcomes)
        total: Tensor | None = None
        votes: Tensor | None = None
        with own_weights_kept(self.module):
            for probs in member_probabilities(self.module, self.members.states, batch, self.predict, self.output, task):
                voted = self.outcomes.decisions(probs, self.threshold).reshape(-1)
                ballot = torch.nn.functional.one_hot(voted, classes)
                votes = ballot if votes is None else votes + ballot
                total = probs if total is None else total + probs
        assert votes is not None
        assert total is not None
        decided = answer(votes, self.rule)
        deferred = decided < 0
        if self.expert is not None and bool(deferred.any()):
            indices = deferred.nonzero()[:, 0]
            asked = self.expert(batch, indices).to(decided)
            if asked.shape != indices.shape:
                raise ValueError(
                    f"the expert was asked about {len(indices)} samples and gave {tuple(asked.shape)} classes."
                )
            decided = decided.index_put((indices,), asked)
        return EnsembleAnswer(decided, deferred, votes, total / len(self.members))

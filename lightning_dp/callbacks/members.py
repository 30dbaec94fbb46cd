"""The models whose predictions are compared: checkpoints, posterior samples, or several trainings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_dp.callbacks.ensemble_budget import EnsembleBudget, Spending, ensemble_budget

__all__ = ("HasPosterior", "Members", "Output", "Predict", "forward_of", "member_probabilities")

#: What a network gives: logits, or probabilities.
Output = Literal["logits", "probs"]
#: The predictions of a module for a batch, without side effects: no logging, no metric.
Predict = Callable[[Any, Any], Tensor]
#: Makes the ``index``-th member: a Trainer of its own, an untrained module, and the data (a data module or loader).
Factory = Callable[[int], tuple[Trainer, LightningModule, Any]]


@runtime_checkable
class HasPosterior(Protocol):
    """A strategy that keeps posterior samples: mappings from names of parameters and buffers to values."""

    @property
    def posterior(self) -> Sequence[Mapping[str, Tensor]]:
        """The samples."""
        ...


@dataclass(frozen=True)
class Members:
    """The members of an ensemble, as weights for one module, and what each has spent. The first one is the baseline.

    Attributes:
        states: for each member a mapping from names to values, which may be read from a disk when it is asked for.
        spendings: what led to each; None for a member trained without differential privacy.
        source: where they are from.
        disjoint: whether the caller declared that no unit is in the training data of two members.
    """

    states: Sequence[Mapping[str, Tensor]]
    spendings: tuple[Spending | None, ...]
    source: Literal["checkpoints", "posterior", "trained"]
    disjoint: bool = False

    def __post_init__(self) -> None:
        if not len(self.states) or len(self.states) != len(self.spendings):
            raise ValueError(f"{len(self.states)} members with {len(self.spendings)} spendings: give one for each.")

    def __len__(self) -> int:
        return len(self.states)

    @classmethod
    def from_checkpoints(cls, paths: Sequence[str | Path], disjoint: bool = False) -> Members:
        """Members from Lightning checkpoints, the baseline first. They are loaded weights-only, onto the CPU.

        Args:
            paths: the files.
            disjoint: declares that no unit (sample, or patient) is in the training data of two of them.

        Raises:
            ValueError: no paths, or a file that is no checkpoint.
            PrivacyError: a checkpoint of a private run whose ledger is empty or cannot be read.
        """
        states, spendings = [], []
        for path in paths:
            checkpoint = _load(path)
            states.append(checkpoint["state_dict"])
            spendings.append(Spending.of_checkpoint(checkpoint, str(path)))
        return cls(states, tuple(spendings), "checkpoints", disjoint)

    @classmethod
    def from_posterior(cls, strategy: Any, checkpoint: str | Path | None = None) -> Members:
        """Members from the posterior samples of a strategy. All are of one ledger, so they cost what one costs.

        Args:
            strategy: has ``posterior``, a sequence of mappings from names to values.
            checkpoint: of the run that the samples are from, where this strategy has not trained itself.

        Raises:
            ValueError: no samples.
            PrivacyError: a private strategy with an empty ledger, and no checkpoint.
        """
        if not isinstance(strategy, HasPosterior):
            raise ValueError(
                f"{type(strategy).__name__} keeps no posterior samples. Train with a strategy that does (its property "
                "posterior), or give Members.from_checkpoints([...])."
            )
        samples = strategy.posterior
        if not len(samples):
            raise ValueError("there are no posterior samples yet: train past the burn-in first.")
        if checkpoint is not None:
            spending = Spending.of_checkpoint(_load(checkpoint), str(checkpoint))
        else:
            spending = Spending.of_strategy(strategy, type(strategy).__name__)
        return cls(samples, (spending,) * len(samples), "posterior")

    @classmethod
    def trained(cls, factory: Factory, num_members: int, disjoint: bool = False) -> Members:
        """Trains members, one after another.

        Args:
            factory: gives for the member's number a Trainer with a strategy of its own, a module and the data. What differs
                between members (seed, order, initial weights) is set there.
            num_members: how many.
            disjoint: declares that no unit is in the training data of two members.

        Raises:
            ValueError: fewer than one member.
        """
        states, spendings = [], []
        for index in range(num_members):
            trainer, module, data = factory(index)
            trainer.fit(module, data)
            states.append({name: value.detach().cpu().clone() for name, value in module.state_dict().items()})
            spendings.append(Spending.of_strategy(trainer.strategy, f"member {index}"))
        return cls(states, tuple(spendings), "trained", disjoint)

    def budget(self) -> EnsembleBudget:
        """What all members together have spent; see `ensemble_budget` for the guarantee."""
        return ensemble_budget(self.spendings, self.disjoint)

    def first(self, count: int) -> Members:
        """The first ``count`` members."""
        return Members([self.states[k] for k in range(count)], self.spendings[:count], self.source, self.disjoint)

    def check(self, module: nn.Module) -> None:
        """Refuses a module that the members' weights do not fit.

        Raises:
            ValueError: names or shapes differ, or a trained parameter is missing: weights of two models would be mixed.
        """
        own = module.state_dict()
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        needed = trained if self.source == "posterior" else set(own)
        for k, state in enumerate(self.states):
            strange, absent = sorted(state.keys() - own.keys()), sorted(needed - state.keys())
            wrong = sorted(n for n in state.keys() & own.keys() if state[n].shape != own[n].shape)
            for names, what in ((strange, "holds"), (absent, "lacks"), (wrong, "has another shape of")):
                if names:
                    raise ValueError(
                        f"member {k} {what} {', '.join(names[:5])}, so its weights are not those of a "
                        f"{type(module).__name__} like this one. All members must have the tested module's architecture."
                    )

    def differ(self) -> bool:
        """Whether two members have different weights."""
        first = self.states[0]
        return any(
            not torch.equal(first[name], value)
            for state in self.states
            for name, value in state.items()
            if name in first
        )


def forward_of(module: Any, batch: Any) -> Tensor:
    """The module called on the batch's inputs: the first item of a tuple or list, or the batch itself.

    Raises:
        ValueError: a batch of another kind, or an output that is no tensor.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    output = module(inputs) if isinstance(inputs, Tensor) else None
    if not isinstance(output, Tensor):
        raise ValueError(
            f"it is not clear how a {type(module).__name__} predicts a batch of type {type(batch).__name__}: give "
            'predict=lambda module, batch: module(batch["inputs"]), which returns a tensor of logits (or of probabilities, '
            'with output="probs").'
        )
    return output


def member_probabilities(
    module: nn.Module, states: Sequence[Mapping[str, Tensor]], batch: Any, predict: Predict, output: Output, task: str
) -> Iterator[Tensor]:
    """The probabilities of each member in turn; the module has the member's weights meanwhile.

    Use it inside `own_weights_kept`, which gives the module its own back.
    """
    for state in states:
        module.load_state_dict(dict(state), strict=False)
        yield as_probabilities(predict(module, batch), output, task)


@contextmanager
def own_weights_kept(module: nn.Module) -> Iterator[None]:
    """Gives the module its own weights, buffers and mode back at the end, to the last bit."""
    own = copy.deepcopy(module.state_dict())
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        module.load_state_dict(own, strict=False)
        for part, training in modes.items():
            part.training = training


def as_probabilities(values: Tensor, output: Output, task: str) -> Tensor:
    """The probabilities in what a network gives."""
    values = values.detach()
    if output == "probs":
        return values
    return values.float().softmax(1) if task == "multiclass" else values.float().sigmoid()


def _load(path: str | Path) -> Mapping[str, Any]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise ValueError(
            f'{path} is no Lightning checkpoint (it has no "state_dict"). Write one by trainer.save_checkpoint.'
        )
    return checkpoint

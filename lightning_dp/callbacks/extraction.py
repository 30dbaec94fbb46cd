"""What a monitor takes from a step: predictions, targets and groups, under agreed keys or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_dp.metrics.groups import Groups, Values

__all__ = ("Extract", "Predictions", "predictions_of")

KEYS = ("probs", "logits", "target", "groups")


@dataclass(frozen=True)
class Predictions:
    """What a model says about some samples, and what is true of them.

    Attributes:
        target: (n,) class numbers, or (n, labels) of 0 and 1; None where the truth is unknown.
        probs: probabilities, (n,) of the positive class, (n, classes) or (n, labels).
        logits: their logits instead, of the same shapes. Exactly one of the two is given: which one is said, not guessed.
        groups: the samples' levels, as `lightning_dp.metrics.Groups.encode` takes them: codes or names, or a mapping
            attribute -> codes or names; None without groups.

    Raises:
        ValueError: both or neither of ``probs`` and ``logits``.
    """

    target: Tensor | None
    probs: Tensor | None = None
    logits: Tensor | None = None
    groups: Values | Mapping[str, Values] | None = None

    def __post_init__(self) -> None:
        if (self.probs is None) == (self.logits is None):
            raise ValueError("give either probs or logits, and not both: what a number is must be said.")

    def __len__(self) -> int:
        return len(self._given)

    @property
    def numbers(self) -> int:
        """How many numbers are predicted: samples times classes."""
        return self._given.numel()

    @property
    def _given(self) -> Tensor:
        given = self.probs if self.probs is not None else self.logits
        assert given is not None
        return given

    def probabilities(self, task: str) -> Tensor:
        """The probabilities; of logits their softmax for ``"multiclass"``, their sigmoid otherwise."""
        if self.probs is not None:
            return self.probs.detach()
        logits = self._given.detach().float()
        if task != "multiclass":
            return logits.sigmoid()
        # Softmax by hand: over few classes torch's own takes five times as long on CPU.
        raised = (logits - logits.amax(1, keepdim=True)).exp_()
        return raised.div_(raised.sum(1, keepdim=True))

    def first(self, n: int) -> Predictions:
        """The first ``n`` samples."""
        if n >= len(self):
            return self
        groups: Any = self.groups
        if isinstance(groups, Mapping):
            groups = {name: values[:n] for name, values in groups.items()}
        elif groups is not None:
            groups = groups[:n]
        cut = [None if t is None else t[:n] for t in (self.target, self.probs, self.logits)]
        return Predictions(cut[0], cut[1], cut[2], groups)

    def kept(self) -> Predictions:
        """A copy to keep, which a step that writes over its outputs does not change.

        Raises:
            ValueError: targets or groups are not one for each prediction.
        """
        n = len(self)
        grouped = self.groups.items() if isinstance(self.groups, Mapping) else (("groups", self.groups),)
        for name, values in (("target", self.target), *grouped):
            if values is not None and len(values) != n:
                raise ValueError(f"{len(self)} predictions for {len(values)} values of {name!r}: give one for each.")
        groups: Any = self.groups
        if isinstance(groups, Mapping):
            groups = {name: _copied(values) for name, values in groups.items()}
        return Predictions(_copied(self.target), _copied(self.probs), _copied(self.logits), _copied(groups))

    def goes_with(self, other: Predictions) -> bool:
        """Whether both can be joined: of one kind and one form."""
        return (
            (self.probs is None) == (other.probs is None)
            and (self.target is None) == (other.target is None)
            and type(self.groups) is type(other.groups)
            and self._given.shape[1:] == other._given.shape[1:]
        )

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """The samples of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        groups: Any = first.groups
        if isinstance(groups, Mapping):
            groups = {name: _cat([part.groups[name] for part in parts]) for name in groups}  # type: ignore[index]
        else:
            groups = _cat([part.groups for part in parts])
        columns = (
            _cat([part.target for part in parts]),
            _cat([part.probs for part in parts]),
            _cat([part.logits for part in parts]),
        )
        return Predictions(*columns, groups)


def _copied(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().clone()
    return list(values) if isinstance(values, (list, tuple)) else values


def _cat(columns: Sequence[Any]) -> Any:
    if columns[0] is None:
        return None
    if isinstance(columns[0], Tensor):
        return torch.cat(list(columns))
    return [value for column in columns for value in column]


#: A function of a step's outputs and its batch.
Extract = Callable[[Any, Any], Predictions]


def predictions_of(
    outputs: Any, batch: Any, extract: Extract | None, groups: Groups | None, step: str, monitor: str
) -> Predictions:
    """The predictions in what a step returned.

    Args:
        outputs: what the step returned: a mapping with ``"probs"`` or ``"logits"``, ``"target"`` and ``"groups"``.
        batch: the batch that went in.
        extract: makes `Predictions` of the two where the step returns something else.
        groups: the groups that are wanted; None: none.
        step: name of the step, for the message.
        monitor: name of the callback, for the message.

    Raises:
        ValueError: a key is missing; the message shows what to add.
        TypeError: ``extract`` gives something else than `Predictions`.
    """
    if extract is not None:
        found = extract(outputs, batch)
        if not isinstance(found, Predictions):
            raise TypeError(
                f"extract= of {monitor} returned {type(found).__name__}; it must return lightning_dp.Predictions(target=..., "
                "probs=... or logits=..., groups=...)."
            )
        missing = ["groups"] if groups is not None and found.groups is None else []
    else:
        given = outputs if isinstance(outputs, Mapping) else {}
        missing = [] if ("probs" in given) != ("logits" in given) else ["probs or logits, one of the two"]
        missing += ["target"] if "target" not in given else []
        missing += ["groups"] if groups is not None and "groups" not in given else []
    if missing:
        raise ValueError(_missing(missing, outputs, groups, step, monitor))
    if extract is not None:
        return found
    return Predictions(
        outputs["target"],
        outputs.get("probs"),
        outputs.get("logits"),
        outputs.get("groups") if groups is not None else None,
    )


def _missing(missing: list[str], outputs: Any, groups: Groups | None, step: str, monitor: str) -> str:
    got = f"the keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
    infix, note = "", ""
    if groups is not None:
        infix = ', "groups": batch_groups'
        note = f" (batch_groups: for each sample its {' and '.join(map(repr, groups.attribute_names))}, codes or names)"
    return (
        f"{monitor} needs {' and '.join(missing)}; {step} returned {got}. Return them from {step}{note}:\n\n"
        f"    def {step}(self, batch, batch_idx):\n"
        "        ...\n"
        f'        return {{"logits": logits, "target": y{infix}}}\n\n'
        'with "probs" in place of "logits" if the network gives probabilities. Where the step cannot be changed, give '
        f"{monitor}(extract=lambda outputs, batch: Predictions(...))."
    )


def same_probabilities(first: Tensor, second: Tensor) -> bool:
    """Whether two ways to the same predictions agree, up to rounding."""
    return first.shape == second.shape and bool(
        torch.allclose(first.float(), second.float().to(first.device), rtol=1e-3, atol=1e-3, equal_nan=True)
    )

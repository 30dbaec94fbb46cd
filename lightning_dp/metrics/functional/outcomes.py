"""What is predicted, and the checks of predictions and targets: anything that would give a wrong number is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ("Outcomes", "Task")

Task = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of a task: the positive class of a binary one, the classes, or the labels.

    Args:
        task: "binary" (probabilities of the positive class, (n,)), "multiclass" ((n, classes), rows sum to one) or
            "multilabel" ((n, labels)).
        names: names of the positive class, the classes, or the labels, in order.
    """

    task: Task
    names: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, num_classes: int | None = None, names: Sequence[str] | None = None) -> Outcomes:
        """The outcomes from their number or their names; ``num_classes`` counts classes, or labels.

        Raises:
            ValueError: an unknown task, or a number of outcomes that is missing or at odds with the names.
        """
        if task not in ("binary", "multiclass", "multilabel"):
            raise ValueError(f'task must be "binary", "multiclass" or "multilabel", got {task!r}.')
        if task == "binary":
            count = 1
            if num_classes not in (None, 1, 2):
                raise ValueError(f'{num_classes} classes are not binary: use task="multiclass".')
        elif num_classes is None and names is None:
            raise ValueError(f"task={task!r} needs num_classes, the number of classes or labels.")
        else:
            count = len(names) if num_classes is None and names is not None else int(num_classes or 0)
        if count < (2 if task == "multiclass" else 1):
            raise ValueError(f"task={task!r} needs more than {count} classes or labels.")
        if names is None:
            names = ["positive"] if task == "binary" else [str(k) for k in range(count)]
        if len(names) != count or len(set(names)) != count:
            raise ValueError(f"task={task!r} with {count} outcomes needs as many different names, got {list(names)}.")
        return cls(task, tuple(str(name) for name in names))

    def __len__(self) -> int:
        return len(self.names)

    def probabilities(self, probs: Tensor) -> Tensor:
        """The checked probabilities as (n, outcomes), in their own precision.

        Raises:
            ValueError: another shape, NaN, values outside [0, 1], or rows of a multi-class task that do not sum to one.
        """
        if not probs.is_floating_point():
            raise ValueError(f"probabilities must be floating point, got {probs.dtype}: hard decisions have none.")
        rows = self._rows(probs, "probabilities")
        low, high = (float(end) for end in rows.aminmax()) if rows.numel() else (0.0, 1.0)
        if not (low >= 0.0 and high <= 1.0):  # NaN among them makes both NaN
            _no_nan(rows, "probabilities")
            fix = "softmax(dim=1)" if self.task == "multiclass" else "sigmoid()"
            raise ValueError(
                f"probabilities must lie in [0, 1], got values from {low:.4g} to {high:.4g}. "
                f"If these are logits give logits.{fix}."
            )
        if self.task == "multiclass" and rows.numel():
            # Room for rounding alone: a half-precision softmax is off by a few units of its last place.
            slack = max(1e-4, 4 * torch.finfo(probs.dtype).eps)
            worst = float((rows.sum(1, dtype=torch.float64) - 1).abs().max())
            if worst > slack:
                raise ValueError(
                    f"the probabilities of a sample must sum to one over the classes, one is off by {worst:.4g}. "
                    'Give softmax outputs, or use task="multilabel" for independent labels.'
                )
        return rows

    def targets(self, targets: Tensor) -> Tensor:
        """The checked targets as int64: (n,) class numbers if multi-class, otherwise (n, outcomes) of 0 and 1.

        Raises:
            ValueError: another shape, NaN, or a label outside the range.
        """
        if self.task == "multiclass":
            if targets.ndim == 2 and targets.shape[1] == 1:
                targets = targets[:, 0]
            if targets.ndim != 1:
                raise ValueError(f"multi-class targets are class numbers (n,), got the shape {tuple(targets.shape)}.")
            return _whole(targets, len(self) - 1, "target")
        return _whole(self._rows(targets, "targets"), 1, "target")

    def decisions(self, preds: Tensor, threshold: float = 0.5) -> Tensor:
        """The checked decisions, shaped as `targets`: the most probable class, or what lies above ``threshold``.

        ``preds`` are probabilities (floating point) or already decisions (integers or bool).
        """
        if preds.is_floating_point():
            return self.decided(self.probabilities(preds), threshold)
        if self.task == "multiclass" and preds.ndim == 1:
            return _whole(preds, len(self) - 1, "prediction")
        return _whole(self._rows(preds, "predictions"), 1, "prediction")

    def decided(self, probs: Tensor, threshold: float = 0.5) -> Tensor:
        """The decisions of checked probabilities (n, outcomes), shaped as `targets`."""
        return probs.argmax(1) if self.task == "multiclass" else (probs > threshold).long()

    def one_hot(self, targets: Tensor) -> Tensor:
        """Targets or decisions as (n, outcomes) of 0 and 1."""
        if self.task != "multiclass":
            return targets
        return torch.nn.functional.one_hot(targets, len(self))

    def _rows(self, values: Tensor, what: str) -> Tensor:
        values = values.detach()
        if self.task == "binary" and values.ndim == 1:
            return values[:, None]
        if values.ndim != 2 or values.shape[1] != len(self):
            wanted = "(n,), those of the positive class" if self.task == "binary" else f"(n, {len(self)})"
            raise ValueError(f"{self.task} {what} must have the shape {wanted}, got {tuple(values.shape)}.")
        return values


def same_length(first: Tensor, second: Tensor) -> int:
    """The common number of samples.

    Raises:
        ValueError: the numbers differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} predictions for {len(second)} targets: give one prediction for each target.")
    return len(first)


def _no_nan(values: Tensor, what: str) -> None:
    bad = int(torch.isnan(values).reshape(len(values), -1).any(1).sum()) if values.numel() else 0
    if bad:
        raise ValueError(
            f"{what} of {bad} of {len(values)} samples are NaN: no measure of them is right. Find where the model "
            "diverges, or leave these samples out yourself and say so."
        )


def _whole(values: Tensor, last: int, what: str) -> Tensor:
    """Whole numbers from 0 to ``last`` as int64; floating point is accepted where it holds whole numbers."""
    values = values.detach()
    if values.is_floating_point():
        _no_nan(values, f"{what}s")
        if not bool((values == values.round()).all()):
            raise ValueError(f"{what}s must be whole numbers from 0 to {last}, got fractions.")
    numbers = values.to(torch.int64)
    low, high = (int(end) for end in numbers.aminmax()) if numbers.numel() else (0, last)
    if low < 0 or high > last:
        raise ValueError(
            f"{what}s must be numbers from 0 to {last}, got {low} to {high}. Number the "
            "classes from 0, and leave out what an ignore-index marks before the measure sees it."
        )
    return numbers

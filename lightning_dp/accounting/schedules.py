"""Schedules fixed in advance: factors for a clipping bound or a noise multiplier, from the step's number alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from lightning_dp.errors import PrivacyConfigError

__all__ = ("CosineSchedule", "LinearSchedule", "Schedule", "StepSchedule", "pieces")

STAGES = 16  # a schedule takes at most so many values: each noise level is an event of its own to be composed


class Schedule(ABC):
    """A factor for every step that no data can change.

    **Guarantee**: a factor depends on the step's number and on the planned number of steps only, so that knowing the
    schedule reveals nothing, and what a step costs is known before it is taken.
    """

    @abstractmethod
    def factor(self, step: int, planned: float) -> float:
        """The factor of ``step`` (from 0), for a training of ``planned`` steps; ``inf`` if it has no end.

        Raises:
            PrivacyConfigError: if the schedule stretches over the training and the training has no end.
        """


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """From ``first`` to ``last`` in a straight line, in 16 stages of equal length.

    Args:
        first: factor of the first stage, positive.
        last: factor of the last stage, and of every later step.
        steps: over how many steps; ``None``: over the whole planned training.

    Raises:
        PrivacyConfigError: for factors that are not positive and finite, or ``steps`` below 1.
    """

    first: float = 1.0
    last: float = 0.5
    steps: int | None = None

    def __post_init__(self) -> None:
        _check_factors(self.first, self.last)
        _check_steps(self.steps)

    def factor(self, step: int, planned: float) -> float:
        """See :meth:`Schedule.factor`."""
        return self.first + (self.last - self.first) * _stage(step, self.steps, planned)

    def __str__(self) -> str:
        return f"linear from {self.first:g} to {self.last:g}{_over(self.steps)}"


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """From ``first`` to ``last`` along half a cosine wave, in 16 stages of equal length; arguments as for a line."""

    first: float = 1.0
    last: float = 0.5
    steps: int | None = None

    def __post_init__(self) -> None:
        _check_factors(self.first, self.last)
        _check_steps(self.steps)

    def factor(self, step: int, planned: float) -> float:
        """See :meth:`Schedule.factor`."""
        wave = 0.5 * (1.0 + math.cos(math.pi * _stage(step, self.steps, planned)))
        return self.last + (self.first - self.last) * wave

    def __str__(self) -> str:
        return f"cosine from {self.first:g} to {self.last:g}{_over(self.steps)}"


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Multiplied by ``gamma`` every ``every`` steps, 15 times at most, and constant from then on.

    Args:
        gamma: positive and finite.
        every: how many steps a stage lasts, at least 1.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    gamma: float = 0.5
    every: int = 1000

    def __post_init__(self) -> None:
        _check_factors(self.gamma, self.gamma ** (STAGES - 1))
        _check_steps(self.every)

    def factor(self, step: int, planned: float) -> float:
        """See :meth:`Schedule.factor`."""
        return float(self.gamma ** min(step // self.every, STAGES - 1))

    def __str__(self) -> str:
        return f"times {self.gamma:g} every {self.every} steps"


def pieces(factors: Iterable[float]) -> tuple[tuple[float, int], ...]:
    """Runs of equal factors and their lengths."""
    return tuple((factor, len(list(run))) for factor, run in groupby(factors))


def _stage(step: int, steps: int | None, planned: float) -> float:
    """How far the schedule is at ``step``, from 0 to 1, held constant within each stage."""
    total = planned if steps is None else steps
    if not math.isfinite(total):
        raise PrivacyConfigError(
            "a schedule over the whole training needs a training with an end: set max_epochs or max_steps on the Trainer, or "
            "give the schedule a number of steps of its own (steps=...)."
        )
    whole = max(1, int(total))
    stages = min(STAGES, whole)
    return min(step * stages // whole, stages - 1) / max(1, stages - 1)


def _over(steps: int | None) -> str:
    return "" if steps is None else f" over {steps} steps"


def _check_factors(*factors: float) -> None:
    for factor in factors:
        number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not (number and 1e-6 <= factor <= 1e6):
            raise PrivacyConfigError(
                f"a schedule's factor must be a number between 1e-6 and 1e6, got {factor!r}: it multiplies noise_multiplier "
                "or max_grad_norm, and a step without either has no privacy."
            )


def _check_steps(steps: int | None) -> None:
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (whole and steps >= 1):
        raise PrivacyConfigError(f"a schedule's number of steps must be a whole number >= 1, got {steps!r}")

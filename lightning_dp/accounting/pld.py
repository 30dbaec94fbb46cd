"""Privacy loss distributions of a composition, on a grid that is never too large and always pessimistic.

The numerics are dp-accounting's: "Connect the Dots" discretisation (arXiv 2207.04380) and FFT composition.
Whatever the grid, the discretised mechanism dominates the true one, so that every delta and eps below is an
upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ("Composition", "Mechanism", "Part", "compose")

Vector = npt.NDArray[np.float64]

_MAX_STEP_POINTS = 1 << 16
_MAX_POINTS = 1 << 19
_MAX_INTERVAL = 256.0
_EPS_MACHINE = float(np.finfo(np.float64).eps)


class Mechanism(Hashable, Protocol):
    """One mechanism: its exact divergences, or ones from above. Equal ones are equal, and can be looked up."""

    @property
    def sigma(self) -> float:
        """Noise multiplier, > 0."""
        ...

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest loss of the removal direction worth a grid point; adding mirrors them."""
        ...

    @property
    def spread(self) -> float:
        """Standard deviation of the likelihood ratio, without the unit."""
        ...

    @property
    def size(self) -> float:
        """What the divergences near 0 are at most of, in (0, 1]."""
        ...

    def divergence(self, remove: bool, eps: Vector) -> Vector:
        """Hockey-stick divergence at any real ``eps``, (m,) -> (m,), with the unit from without it or the reverse."""
        ...

    def sample(self) -> tuple[Vector, Vector, Vector]:
        """Losses of removing at many points, and the points' weights with the unit and without it, all (m,)."""
        ...


#: A mechanism, and how many times it is composed
Part = tuple[Mechanism, int]


@dataclass(frozen=True)
class Composition:
    """The composed loss distributions in both directions of the add-or-remove-one relation.

    Neither direction dominates the other in general, so both are composed and the worse one counts.
    """

    remove: Any
    add: Any
    rounding: float
    interval: float
    """Distance of the grid's points in units of loss."""

    def epsilon(self, delta: float) -> float:
        """Smallest eps at ``delta``; inf where rounding errors could hide as much as ``delta``."""
        usable = delta - self.rounding
        if usable <= 0.0:
            return math.inf
        return max(0.0, *(float(pmf.get_epsilon_for_delta(usable)) for pmf in (self.remove, self.add)))

    def delta_remove(self, eps: float) -> float:
        """Hockey-stick divergence of the run with the unit from the run without it, at any real ``eps``."""
        return min(1.0, max(0.0, float(self.remove.get_delta_for_epsilon(eps))) + self.rounding)

    def delta_add(self, eps: float) -> float:
        """Hockey-stick divergence of the run without the unit from the run with it, at any real ``eps``."""
        return min(1.0, max(0.0, float(self.add.get_delta_for_epsilon(eps))) + self.rounding)

    def delta(self, eps: float) -> float:
        """Smallest delta at ``eps``."""
        return max(self.delta_remove(eps), self.delta_add(eps))

    def profiles(self, eps: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The two divergences at many increasing ``eps`` < 700 at once, both (m,)."""
        both = []
        for pmf in (self.remove, self.add):
            # dp-accounting sums the grid up one by one here, with an ulp of rounding a point.
            slack = self.rounding + 2.0 * _EPS_MACHINE * pmf.size
            both.append(np.clip(np.asarray(pmf.get_delta_for_epsilon(eps), dtype=np.float64) + slack, 0.0, 1.0))
        return both[0], both[1]

    def power(self, level: float, remove: bool) -> float:
        """Largest power of a test of size ``level`` in [0, 1]: the null hypothesis is the run without the unit, or with it.

        A test E with P(E) <= level has Q(E) <= delta(eps) + e^eps level at every real eps, and the least of these bounds
        is attained (Neyman and Pearson). Any eps gives a bound, so the search can only err on the safe side.
        """
        return _least(self.delta_remove if remove else self.delta_add, level)


def _least(delta: Callable[[float], float], level: float) -> float:
    """Least of delta(eps) + e^eps level, which is convex in e^eps: a scan, then golden sections round its best point."""

    def line(eps: float) -> float:
        return delta(eps) + math.exp(eps) * level

    # Below, delta(eps) >= 1 - e^eps exceeds 1 - e^-40; above, the sum exceeds 1.
    scan = np.linspace(-40.0, min(690.0, -math.log(level) if level > 0.0 else 690.0), 33)
    values = [line(float(eps)) for eps in scan]
    at = int(np.argmin(values))
    low, high = float(scan[max(0, at - 1)]), float(scan[min(len(scan) - 1, at + 1)])
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = line(left), line(right)
    best = min(1.0, *values, at_left, at_right)
    for _ in range(28):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = line(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = line(right)
        best = min(best, at_left, at_right)
    return best


@lru_cache(maxsize=8)
def compose(parts: tuple[Part, ...], coarsening: int = 0) -> Composition | None:
    """Compose mechanisms; None where no affordable grid exists (a closed-form bound must then do).

    Args:
        parts: Each mechanism, and its steps >= 1.
        coarsening: Grids 2^coarsening times wider (finer where negative), for a quick and looser, still sound, answer.
    """
    grid = _interval(parts, coarsening)
    if grid is None:
        return None
    interval, points = grid
    steps = sum(times for _, times in parts)
    # Rounding: a step's profile is off by a few ulp, times 1 / sigma where that is large; the transform adds
    # log2(points) ulp a step. A profile too low by r is made sound by r of extra infinite loss, and infinite
    # losses add up over steps: take that off the delta to be met.
    least = min(mechanism.sigma for mechanism, _ in parts)
    rounding = 4.0 * _EPS_MACHINE * (steps + 1) * (math.log2(points) + 2.0 + 1.0 / least)
    try:
        # Overflow and invalid values mean that rounding swamped the grid (below): no answer rather than a
        # wrong one.
        with np.errstate(over="raise", invalid="raise", under="ignore", divide="raise"):
            directions = [_compose_direction(parts, interval, remove) for remove in (True, False)]
    except (FloatingPointError, OverflowError, ValueError):
        return None
    return Composition(remove=directions[0], add=directions[1], rounding=rounding, interval=interval)


def _compose_direction(parts: Sequence[Part], interval: float, remove: bool) -> Any:
    total: Any = None
    for mechanism, times in parts:
        pmf = _step(mechanism, interval, remove).self_compose(times)
        total = pmf if total is None else total.compose(pmf)
    return total


@lru_cache(maxsize=32)
def _step(mechanism: Mechanism, interval: float, remove: bool) -> Any:
    from dp_accounting.pld import pld_pmf  # lazily: it takes a second to import

    lower, upper = _ends(mechanism, remove)
    low, high = math.floor(lower / interval), math.ceil(upper / interval)
    deltas = mechanism.divergence(remove, np.arange(low, high + 1, dtype=np.float64) * interval)
    # Dense from the start: the sparse representation loops over the steps.
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas).to_dense_pmf()


def _ends(mechanism: Mechanism, remove: bool) -> tuple[float, float]:
    low, high = mechanism.ends
    return (low, high) if remove else (-high, -low)


def _interval(parts: Sequence[Part], coarsening: int) -> tuple[float, int] | None:
    """The grid's interval and the points it needs after composition.

    The interval is a power of two, and given the events it only ever widens with the number of steps. A wider
    grid is then part of a finer one and dominates it, so that eps is exactly monotone in the number of steps.
    """
    ends = [mechanism.ends for mechanism, _ in parts]
    if not all(math.isfinite(end) for pair in ends for end in pair):
        return None
    wanted = min(_wanted(mechanism) for mechanism, _ in parts)
    interval = 2.0 ** (math.floor(math.log2(wanted)) + coarsening)
    span = sum(high - low for low, high in ends)
    growth = sum(_growth(*part) for part in parts)
    # Masses are differences of profiles over the interval, so rounding leaves some size * ulp / interval of spurious
    # mass at each of span / interval points, which dp-accounting rounds up and which steps multiply.
    finest = math.sqrt(100.0 * _EPS_MACHINE * span * sum(mechanism.size * times for mechanism, times in parts))
    while interval <= _MAX_INTERVAL:
        points = growth / interval
        if interval >= finest and span / interval <= _MAX_STEP_POINTS and points <= _MAX_POINTS:
            return interval, max(2, math.ceil(points))
        interval *= 2.0
    return None


def _wanted(mechanism: Mechanism) -> float:
    """A sixth of the loss's standard deviation: connecting the dots then costs about 0.1 % of eps.

    Small noise makes the ratio's deviation meaningless: the grid then follows the loss of a full step, 1 / (2 sigma^2).
    """
    sigma = mechanism.sigma
    return max(1e-12, min(mechanism.spread, 0.02 * (0.5 / sigma + 1.0) / sigma) / 6.0)


def _growth(mechanism: Mechanism, steps: int) -> float:
    """Estimate of the composed grid's width in units of loss.

    dp-accounting keeps a Chernoff window of mass 1e-15 at the orders k / span, k = 1 ... 20. Its moments are
    computed here by quadrature, before anything large is allocated; an estimate suffices, since no number
    depends on it.
    """
    loss, with_unit, without = mechanism.sample()
    widths = []
    for weights, losses, ends in (
        (with_unit, loss, _ends(mechanism, True)),
        (without, -loss, _ends(mechanism, False)),
    ):
        span = ends[1] - ends[0]
        orders = np.arange(1.0, 21.0)[:, None] / span
        inside = np.clip(losses, *ends)
        above, below = (
            np.min((steps * np.log(np.exp(order * (inside - end)) @ weights) + 36.0) / np.abs(orders[:, 0]))
            + sign * steps * end
            for order, end, sign in ((orders, ends[1], 1), (-orders, ends[0], -1))
        )
        widths.append(min(steps * span, 1.25 * float(above + below)) + span)
    return max(widths)

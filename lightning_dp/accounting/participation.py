"""A closed-form bound through the number of steps a unit takes part in.

The composed mechanism without the unit is N(0, I); with it, a mixture over the random set of steps it takes
part in. Hockey-stick divergences are jointly convex, hence for both directions

    delta(eps) <= E[ delta_gauss(sqrt(mu^2 + K / sigma^2), eps) ],    K ~ Binomial(steps, q),

where mu is the index of whatever else is composed. The bound forgets only that the attacker does not see the
set. That costs nothing where the noise is so small that the set shows anyway (very large eps, where a grid of
privacy losses would need too many points), and little where a unit is hardly ever drawn.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, ndtr, ndtri

from lightning_dp.accounting.gaussian import gaussian_delta, gaussian_epsilon

__all__ = ("participation_delta", "participation_epsilon", "participation_powers")

_TAIL = 1e-30
_POINTS = 4096
#: Relative error allowed for in the binomial tails; delta is raised by it.
_ROUNDING = 1e-9

Vector = npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def _counts(q: float, steps: int) -> tuple[Vector, Vector]:
    """Increasing participation counts ``k`` and ``P(K > k)``; every count in between is rounded up."""
    mean, load = steps * q, -math.log(_TAIL)
    # Bernstein's inequality: beyond this distance from the mean the chance is below _TAIL.
    width = math.sqrt(2.0 * load * mean) + load
    low, high = max(0, math.floor(mean - width)), min(steps, math.ceil(mean + width))
    counts = np.unique(np.append(np.arange(low, high, (high - low) // _POINTS + 1), high)).astype(np.float64)
    inside = counts < steps
    beyond = np.zeros_like(counts)
    beyond[inside] = betainc(counts[inside] + 1.0, steps - counts[inside], q)
    return counts, beyond


def participation_delta(eps: float, *, sigma: float, q: float, steps: int, mu: float = 0.0) -> float:
    """Upper bound on delta at ``eps``.

    Args:
        eps: Any eps >= 0.
        sigma: Noise multiplier of the subsampled steps, > 0.
        q: Their Poisson rate in (0, 1).
        steps: Their number.
        mu: Index of the Gaussian that is composed with them, 0 for none.
    """
    counts, beyond = _counts(q, steps)
    deltas = gaussian_delta(np.sqrt(mu * mu + counts / sigma / sigma), eps)
    # Summed by parts: only positive terms, so that tiny deltas keep their digits. Counts past the last one,
    # whose chance is below _TAIL, give everything away.
    total = deltas[0] + np.sum(beyond[:-1] * np.maximum(np.diff(deltas), 0.0)) + beyond[-1]
    return min(1.0, float(total) * (1.0 + _ROUNDING))


def participation_epsilon(delta: float, *, sigma: float, q: float, steps: int, mu: float = 0.0) -> float:
    """Upper bound on eps at ``delta``; arguments as in :func:`participation_delta`."""
    if participation_delta(0.0, sigma=sigma, q=q, steps=steps, mu=mu) <= delta:
        return 0.0
    low, high = 0.0, gaussian_epsilon(math.sqrt(mu * mu + steps / sigma / sigma), delta)
    for _ in range(100):
        middle = 0.5 * (low + high)
        if high - low <= 1e-12 * high:
            break
        if participation_delta(middle, sigma=sigma, q=q, steps=steps, mu=mu) > delta:
            low = middle
        else:
            high = middle
    return high


def participation_powers(level: float, *, sigma: float, q: float, steps: int, mu: float = 0.0) -> tuple[float, float]:
    """Upper bounds on the power of a test of size ``level`` in (0, 1): null hypothesis without the unit, and with it.

    For every set S of steps, a test E of size P(E) against N(0, I) has power at most Phi(Phi^-1(P(E)) + m_S) against the
    run in which the unit takes part in S, m_S = sqrt(mu^2 + |S| / sigma^2). E is the same for all S, so the mixture over S
    averages the right-hand sides. The other direction is the inverse: its size is at least E Phi(Phi^-1(power) - m_S).
    """
    counts, beyond = _counts(q, steps)
    shifts = np.sqrt(mu * mu + counts / sigma / sigma)
    gains = ndtr(float(ndtri(level)) + shifts)
    remove = gains[0] + np.sum(beyond[:-1] * np.maximum(np.diff(gains), 0.0)) + beyond[-1]

    def size(quantile: float) -> float:
        losses = ndtr(quantile - shifts)
        cut = np.sum(beyond[:-1] * np.maximum(-np.diff(losses), 0.0)) + beyond[-1] * losses[-1]
        return float(losses[0] - cut * (1.0 + _ROUNDING))

    low, high = float(ndtri(level)), 38.0
    if size(high) <= level:
        return min(1.0, float(remove) * (1.0 + _ROUNDING)), 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if size(middle) <= level else (low, middle)
    return min(1.0, float(remove) * (1.0 + _ROUNDING)), min(1.0, float(ndtr(high)) * (1.0 + _ROUNDING))

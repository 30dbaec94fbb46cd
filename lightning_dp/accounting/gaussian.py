"""Closed forms of the Gaussian mechanism N(0, 1) against N(mu, 1), stable over the whole range of mu.

Source: Balle and Wang 2018 (arXiv 1805.06530), theorem 8; Dong, Roth and Su 2019 (arXiv 1905.02383), section
2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx, log_ndtr, ndtr, ndtri

__all__ = ("gaussian_delta", "gaussian_epsilon", "gaussian_mu", "gaussian_power")

_ULP = float(np.finfo(np.float64).eps)


def _delta_at(t: npt.ArrayLike, mu: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """delta at eps = mu (t + mu / 2): both terms share the factor exp(-t^2 / 2), so nothing overflows."""
    t_, mu_ = np.asarray(t, dtype=np.float64), np.asarray(mu, dtype=np.float64)
    upper = ndtr(-t_)
    lower = 0.5 * np.exp(-0.5 * t_ * t_) * erfcx((mu_ + t_) / math.sqrt(2.0))
    # Relative rounding of both terms, generously (the exponent t^2 / 2 loses as many digits as it has):
    # added, so that rounding never lowers a delta.
    rounding = 8.0 * _ULP * (1.0 + 0.5 * t_ * t_) * upper
    delta: npt.NDArray[np.float64] = np.clip(upper - lower + rounding, 0.0, 1.0)
    return delta


def gaussian_delta(mu: npt.ArrayLike, eps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Smallest delta of the Gaussian mechanism at ``eps``, elementwise.

    delta = Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu), rounded up.

    Args:
        mu: Sensitivity over noise standard deviation, any shape, >= 0.
        eps: Any eps >= 0, of a shape that broadcasts with ``mu``.
    """
    mu_ = np.asarray(mu, dtype=np.float64)
    safe = np.where(mu_ > 0.0, mu_, 1.0)
    t = np.minimum(np.asarray(eps, dtype=np.float64) / safe - 0.5 * safe, 1e150)
    return np.where(mu_ > 0.0, _delta_at(t, safe), 0.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest eps of the Gaussian mechanism at ``delta``, rounded up; inf for infinite ``mu``."""
    if not math.isfinite(mu):
        return math.inf
    if mu == 0.0 or float(_delta_at(-0.5 * mu, mu)) <= delta:
        return 0.0
    # delta <= Phi(-t), so the root lies below the normal quantile.
    low, high = -0.5 * mu, max(float(-ndtri(delta)), -0.5 * mu) + 1e-9
    while float(_delta_at(high, mu)) > delta:
        high += 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if float(_delta_at(middle, mu)) > delta else (low, middle)
    # The end at which delta is kept: an upper bound whatever the bracket's width.
    return max(0.0, mu * (high + 0.5 * mu)) * (1.0 + 1e-14)


def gaussian_mu(eps: float, delta: float) -> float:
    """Largest mu whose Gaussian mechanism is (eps, delta)-private."""
    low, high = 0.0, 1.0
    while float(gaussian_delta(high, eps)) <= delta:
        low, high = high, 2.0 * high
        if high > 1e150:
            return low
    for _ in range(2000):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if float(gaussian_delta(middle, eps)) <= delta else (low, middle)
    return low


def gaussian_power(mu: float, level: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Power Phi(Phi^-1(level) + mu) of the best test of each size, the same in both directions.

    Through the log cdf, so that the far tail keeps its digits; never below ``level``, which mu = 0 returns exactly.

    Args:
        mu: Sensitivity over noise standard deviation, in [0, inf].
        level: Sizes in [0, 1], any shape.
    """
    sizes = np.asarray(level, dtype=np.float64)
    if math.isinf(mu):
        return np.ones_like(sizes)[()]
    power: npt.NDArray[np.float64] = np.maximum(sizes, np.exp(log_ndtr(ndtri(sizes) + mu)))[()]
    return power

"""Renyi divergence of the Poisson-subsampled Gaussian, and its conversion to (eps, delta).

Sources: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3, for the moments (the removal direction
is the larger one, their theorem 5); Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12, for the
conversion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps

__all__ = ("ORDERS", "rdp_delta", "rdp_epsilon", "rdp_of_entries", "rdp_power", "rdp_step")

Vector = npt.NDArray[np.float64]

_WHOLE = tuple(range(2, 65)) + tuple(sorted({round(64 * 2 ** (k / 6)) for k in range(1, 43)}))
_BROKEN = tuple(round(1.0 + k / 40, 3) for k in range(1, 40)) + tuple(
    round(2.0 + k / 10, 3) for k in range(1, 80) if k % 10
)
#: The orders alpha > 1 at which divergences are kept.
ORDERS: Vector = np.array(_BROKEN + _WHOLE, dtype=np.float64)

#: Absolute error allowed for in a fractional moment from quadrature; added, so that the bound stays one.
_QUADRATURE_ERROR = 1e-13


@lru_cache(maxsize=1)
def _binomials() -> tuple[Vector, Vector, Vector, npt.NDArray[np.int64]]:
    """All whole orders in flat arrays: alpha, k = 2 ... alpha, log C(alpha, k); and where each starts."""
    alpha = np.concatenate([np.full(a - 1, float(a)) for a in _WHOLE])
    k = np.concatenate([np.arange(2.0, a + 1.0) for a in _WHOLE])
    starts = np.cumsum([0] + [a - 1 for a in _WHOLE[:-1]])
    return alpha, k, gammaln(alpha + 1.0) - gammaln(k + 1.0) - gammaln(alpha - k + 1.0), starts


def _log_moments_whole(sigma: float, q: float) -> Vector:
    """log A(alpha) for the whole orders; all terms are positive, so this is exact to rounding.

    The binomial weights add up to one, so A - 1 = sum_k C(alpha, k) q^k (1-q)^(alpha-k) (exp((k^2-k)/2
    sigma^2) - 1): the tiny moments of large noise keep their leading digits.
    """
    alpha, k, log_binomial, starts = _binomials()
    exponent = (k * k - k) / 2.0 / sigma / sigma
    # log(e^x - 1) = x + log(1 - e^-x)
    terms = log_binomial + k * math.log(q) + (alpha - k) * math.log1p(-q) + exponent + np.log(-np.expm1(-exponent))
    peaks = np.maximum.reduceat(terms, starts)
    sums = np.add.reduceat(np.exp(terms - np.repeat(peaks, np.diff(np.append(starts, len(k))))), starts)
    log_excess = peaks + np.log(sums)
    moments: Vector = np.where(log_excess > -30.0, np.logaddexp(0.0, log_excess), np.exp(np.minimum(log_excess, 0.0)))
    # Rounding of log-gamma and of the exponents, relative to the largest of them.
    return moments * (1.0 + 1e-11)


def _log_moments_broken(sigma: float, q: float, alphas: Vector) -> Vector:
    """log A(alpha) for fractional orders by the trapezoid rule.

    The integrand is analytic in a strip of half-width pi sigma^2 and decays like a Gaussian, where the rule
    converges
    exponentially: with these steps its error is below ``_QUADRATURE_ERROR``, which is added.
    """
    step = min(sigma / 6.0, sigma * sigma / 2.6)
    x = np.arange(-10.0 * sigma, float(alphas.max()) + 10.0 * sigma + step, step)
    log_density = -0.5 * (x / sigma) ** 2 - 0.5 * math.log(2.0 * math.pi) - math.log(sigma)
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2.0 * x - 1.0) / (2.0 * sigma * sigma))
    moments: Vector = logsumexp(log_density + alphas[:, None] * log_ratio, axis=1) + math.log(step)
    return np.maximum(moments, 0.0) * (1.0 + 1e-12) + _QUADRATURE_ERROR


@lru_cache(maxsize=256)
def rdp_step(sigma: float, q: float) -> Vector:
    """Divergence of one step at each of :data:`ORDERS`; inf without noise. Read-only.

    Args:
        sigma: Noise multiplier, >= 0.
        q: Poisson rate in (0, 1].
    """
    sigma = min(sigma, 1e100)  # less noise than there is: a bound, without underflow
    if sigma < 1e-100:
        rdp = np.full_like(ORDERS, math.inf)
    elif q == 1.0:
        rdp = ORDERS / 2.0 / sigma / sigma
    else:
        with np.errstate(over="ignore", divide="ignore", under="ignore"):
            whole = _log_moments_whole(sigma, q)
            broken = np.array(_BROKEN)
            # log A is convex in alpha with log A(1) = 0, so the chord between whole orders bounds it from
            # above. Small noise has a narrow strip of analyticity: there the chord is taken alone.
            chord = np.interp(broken, np.array((1, *_WHOLE)), np.concatenate(([0.0], whole)))
            moments = np.minimum(chord, _log_moments_broken(sigma, q, broken)) if 0.08 <= sigma <= 1e3 else chord
        rdp = np.concatenate((moments, whole)) / (ORDERS - 1.0)
        # Sampling never hurts: the divergence without amplification is a bound as well.
        rdp = np.minimum(rdp, ORDERS / 2.0 / sigma / sigma)
    rdp.setflags(write=False)
    return rdp


def rdp_of_entries(entries: Iterable[LedgerEntry]) -> Vector:
    """Divergence of the composition: divergences add up."""
    total = np.zeros_like(ORDERS)
    for event, steps in gaussian_steps(entries):
        total = total + steps * rdp_step(event.noise_multiplier, event.sample_rate)
    return total


def rdp_epsilon(rdp: Vector, delta: float) -> float:
    """Smallest eps at ``delta`` over all orders."""
    return max(0.0, float(np.min(rdp + _conversion(delta))))


@lru_cache(maxsize=64)
def _conversion(delta: float) -> Vector:
    offsets: Vector = np.log1p(-1.0 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1.0)
    return offsets


def rdp_delta(rdp: Vector, eps: float) -> float:
    """Smallest delta at ``eps`` over all orders."""
    log_delta = (ORDERS - 1.0) * (rdp - eps + np.log1p(-1.0 / ORDERS)) - np.log(ORDERS)
    return min(1.0, math.exp(min(0.0, float(np.min(log_delta)))))


def rdp_power(rdp: Vector, level: float) -> float:
    """Largest power of a test of size ``level`` in (0, 1), over all orders.

    Hoelder's inequality: Q(E) <= (P(E) exp(D_alpha(Q || P)))^((alpha - 1) / alpha).
    """
    log_power = (1.0 - 1.0 / ORDERS) * (math.log(level) + rdp)
    return math.exp(min(0.0, float(np.min(log_power)))) if np.isfinite(rdp).any() else 1.0

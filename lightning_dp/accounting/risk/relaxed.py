"""The relaxed adversary: it does not know what it looks for, and tests by a generalised likelihood ratio.

**Nothing here is a differential-privacy guarantee.** The strongest attacker of the guarantee knows the exact gradient that
it tests for. This one knows its norm alone, and estimates the rest (Kaissis et al. 2022, arXiv 2210.13028). Whoever knows
more does better, up to the worst case, which every result therefore carries along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, log_ndtr, ndtr, ndtri
from scipy.stats import chi2, ncx2

from lightning_dp.accounting.accountants import PLDAccountant, full_index, is_sampled
from lightning_dp.accounting.gaussian import gaussian_power
from lightning_dp.accounting.ledger import LedgerEntry, merge_entries
from lightning_dp.accounting.profile import amplified
from lightning_dp.accounting.responses import without_responses
from lightning_dp.accounting.risk.closed_forms import check_kappa
from lightning_dp.accounting.risk.reconstruction import ReconstructionBound, reconstruction_bound
from lightning_dp.errors import PrivacyConfigError

__all__ = ("RelaxedRisk", "glrt_power", "glrt_reverse_power", "relaxed_risk")

Array = npt.NDArray[np.float64]

_SAME = (
    "the attacker sums up all steps and looks for one unknown direction of known length in {d} dimension(s); it knows neither "
    "the gradient nor the sign"
)
_STEPWISE = (
    "the attacker knows the line on which each step's gradient lies and its length, but forgets the sign of every step's "
    "output; it does not know which steps the sample was in"
)
_ANSWERS = "the worst case: how much less the attacker reaches is not known where labels are randomised beside"
_NO_GRID = "the noise is too small for the relaxed attacker's distribution to be computed; the worst case is given in its place"


@dataclass(frozen=True)
class RelaxedRisk:
    """Success of the relaxed adversary. **Not a differential-privacy guarantee**: a stronger attacker does better.

    Attributes:
        kappa: chance of the best blind guess.
        gamma: the adversary's chance of success; at most that of the worst case.
        worst_case: the guarantee for the same ledger, to be shown beside it.
        dimension: number of dimensions in which the adversary searches.
        convention: what the adversary knows, in words.
        is_guarantee: always false.
    """

    kappa: float
    gamma: float
    worst_case: ReconstructionBound
    dimension: int
    convention: str
    is_guarantee: bool = False

    def __str__(self) -> str:
        return (
            f"relaxed threat model, NOT a guarantee: reconstruction succeeds with chance {self.gamma:.4g} (worst case: "
            f"{self.worst_case.gamma:.4g}) where a blind guess has {self.kappa:.3g}"
        )


def glrt_power(alpha: npt.ArrayLike, mu: float, dimension: int = 1) -> Array:
    """Power of the test of size ``alpha`` that rejects for a large norm: the best one that treats all directions alike.

    Under the null hypothesis the squared norm is chi-square with ``dimension`` degrees of freedom, otherwise non-central
    with parameter mu^2.

    Args:
        alpha: Sizes in [0, 1], any shape.
        mu: Sensitivity over noise standard deviation, >= 0 and finite.
        dimension: d >= 1; more dimensions to search in make the attack weaker.
    """
    sizes, mu = _check(alpha, mu, dimension)
    if dimension == 1:  # the two-sided z-test, exact at any mu
        z = -ndtri(0.5 * sizes)
        power = np.exp(log_ndtr(mu - z)) + ndtr(-mu - z)
    else:
        power = _upper(chdtri(dimension, sizes), mu, dimension)
    found: Array = np.clip(power, sizes, gaussian_power(mu, sizes))[()]
    return found


def glrt_reverse_power(alpha: npt.ArrayLike, mu: float, dimension: int = 1) -> Array:
    """The same with the hypotheses exchanged: rejects "the unit was used" for a small norm."""
    sizes, mu = _check(alpha, mu, dimension)
    if mu == 0.0:
        return sizes[()]
    threshold = ncx2.ppf(sizes, dimension, mu * mu)
    power = np.where(sizes == 1.0, 1.0, chi2.cdf(threshold, dimension))
    found: Array = np.clip(np.nan_to_num(power, nan=1.0), sizes, gaussian_power(mu, sizes))[()]
    return found


def relaxed_risk(entries: Sequence[LedgerEntry], kappa: float, dimension: int = 1) -> RelaxedRisk:
    """Success of the relaxed adversary on a ledger, with the worst case beside it: **not a guarantee**.

    A ledger without amplification is one Gaussian: the adversary sums up the steps and searches ``dimension`` dimensions for
    one and the same shift. With subsampling it composes, step by step, the squared output in one dimension, of which it
    knows the likelihood ratio 1 - q + q exp(-mu^2 / 2) cosh(mu z) (authors' convention, df = 1).

    Raises:
        PrivacyConfigError: If ``kappa`` is out of range, or for other dimensions than 1 with subsampling.
    """
    kappa, merged = float(check_kappa(kappa)), merge_entries(entries)
    worst = reconstruction_bound(merged, kappa)
    same = _SAME.format(d=dimension)
    if worst.method in ("nothing released", "no noise"):
        return RelaxedRisk(kappa, worst.gamma, worst, dimension, same)
    if without_responses(merged)[1]:
        return RelaxedRisk(kappa, worst.gamma, worst, dimension, _ANSWERS)
    if not is_sampled(merged):
        mu = full_index(merged)
        gamma = max(float(glrt_power(kappa, mu, dimension)), float(glrt_reverse_power(kappa, mu, dimension)))
        return RelaxedRisk(kappa, min(gamma, worst.gamma), worst, dimension, same)
    if dimension != 1:
        raise PrivacyConfigError(
            f"the relaxed adversary on a subsampled ledger is known for one dimension, got dimension={dimension}: use 1, "
            "which is the strongest of them."
        )
    composition = PLDAccountant(-1).composition(merged, (_unsigned_remove, _unsigned_add))
    if composition is None or not 0.0 < kappa < 1.0:
        return RelaxedRisk(kappa, worst.gamma, worst, 1, _NO_GRID if composition is None else _STEPWISE)
    gamma = min(worst.gamma, max(kappa, composition.power(kappa, True), composition.power(kappa, False)))
    return RelaxedRisk(kappa, gamma, worst, 1, _STEPWISE)


def _check(alpha: npt.ArrayLike, mu: float, dimension: int) -> tuple[Array, float]:
    if not 0.0 <= mu < math.inf:
        raise PrivacyConfigError(
            f"mu must be finite and >= 0, got {mu}: it is sensitivity over noise standard deviation."
        )
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 1:
        raise PrivacyConfigError(f"dimension must be a whole number >= 1, got {dimension!r}.")
    return check_kappa(alpha), float(mu)


def _upper(threshold: Array, mu: float, dimension: int) -> Array:
    tail: Array = np.nan_to_num(ncx2.sf(threshold, dimension, mu * mu), nan=1.0)
    return tail


def _turn(sigma: float, u: Array) -> Array:
    """The t > 0 at which exp(-mu^2 / 2) cosh(mu t) = e^u; 0 where it never is as small."""
    log_cosh = np.maximum(u + 0.5 / sigma / sigma, 0.0)
    # arcosh(e^y) = y + log(1 + sqrt(1 - e^-2y))
    turn: Array = sigma * (log_cosh + np.log1p(np.sqrt(-np.expm1(-2.0 * log_cosh))))
    return turn


def _unsigned_remove(sigma: float, q: float, eps: Array) -> Array:
    """Divergence of |output| with the unit from |output| without it: q (P1(|z| > t) - e^u P0(|z| > t))."""
    delta = -np.expm1(np.minimum(eps, 0.0))
    inside, u = _reachable(sigma, q, eps)
    t, mu = _turn(sigma, u), 1.0 / sigma
    without = np.exp(np.minimum(u + math.log(2.0) + log_ndtr(-t), 0.0))
    delta[inside] = q * (ndtr(mu - t) + ndtr(-mu - t) - without)
    return np.clip(delta, 0.0, 1.0)


def _unsigned_add(sigma: float, q: float, eps: Array) -> Array:
    """The other direction: q e^eps (e^u P0(|z| < t) - P1(|z| < t)) with u taken at -eps."""
    delta = np.zeros_like(eps)
    inside, u = _reachable(sigma, q, -eps)
    t, mu, here = _turn(sigma, u), 1.0 / sigma, np.minimum(eps[inside], 700.0)
    without = -np.expm1(np.minimum(math.log(2.0) + log_ndtr(-t), 0.0))
    delta[inside] = q * (np.exp(here + u) * without - np.exp(here) * (ndtr(t - mu) - ndtr(-t - mu)))
    return np.clip(delta, 0.0, 1.0)


def _reachable(sigma: float, q: float, eps: Array) -> tuple[npt.NDArray[np.bool_], Array]:
    """Which losses |output| can have, and their u = log((e^eps - 1 + q) / q) = log(exp(-mu^2 / 2) cosh(mu t))."""
    inside = eps > (math.log1p(-q) if q < 1.0 else -math.inf)
    u = amplified(eps[inside], q) if q < 1.0 else eps[inside]
    above = u > -0.5 / sigma / sigma
    inside[inside] = above
    return inside, u[above]

"""What an attacker can reach at most: the trade-off between the two errors of a membership test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from lightning_dp.accounting.accountants import (
    ClosedFormAccountant,
    PLDAccountant,
    failure,
    full_index,
    is_sampled,
    without_noise,
)
from lightning_dp.accounting.ledger import LedgerEntry, merge_entries
from lightning_dp.accounting.responses import Losses, delta_beside, without_responses
from lightning_dp.errors import PrivacyConfigError

__all__ = ("TradeOffCurve",)

Array = npt.NDArray[np.float64]

#: Lines of larger eps touch the curve only at error rates below exp(-600).
_MAX_EPS = 600.0
_LINES = 2001
_CLOSED_FORM_LINES = 65


class TradeOffCurve:
    """Lower bound on the errors, hence upper bound on the success, of every membership attack on a ledger.

    The attacker tests "the unit was not used" against "the unit was used", sees every private gradient, and
    knows all other units (f-DP; Dong, Roth and Su 2019, arXiv 1905.02383). Without amplification the curve is
    the exact Gaussian one. Otherwise it is the envelope of the lines that the (eps, delta) profiles of both
    directions allow; the worse of the two roles of the hypotheses is reported at each point. Leaving lines
    out only favours the attacker, so the bound holds whatever their number.

    Args:
        entries: Any ledger's entries; empty means nothing was released. Randomised labels count like noise: the
            attacker sees the answer.
    """

    def __init__(self, entries: Sequence[LedgerEntry]) -> None:
        self._entries = merge_entries(entries)
        rest, losses = without_responses(self._entries)
        self._broken = without_noise(rest) or failure(rest) >= 1.0
        self._exact = not (self._broken or losses or is_sampled(rest) or failure(rest))
        self._mu = full_index(rest) if self._exact else math.nan
        if losses and not self._broken:
            self._eps, self._remove = _profile_beside(rest, losses)
            self._add = self._remove
        elif not self._broken and not self._exact:
            self._eps, self._remove, self._add = _profiles(rest)

    def beta(self, alpha: npt.ArrayLike) -> Array:
        """Smallest type II error (missed members) of any test with type I error ``alpha`` (false alarms).

        Args:
            alpha: Error rates in [0, 1], any shape.

        Returns:
            Lower bounds of the same shape.
        """
        rates = np.asarray(alpha, dtype=np.float64)
        if not np.all((rates >= 0.0) & (rates <= 1.0)):
            raise PrivacyConfigError("alpha must lie in [0, 1]: it is an error rate.")
        if self._broken:
            return np.zeros_like(rates)[()]
        if self._exact:
            # Phi(z_alpha - mu) with z_alpha = -Phi^-1(alpha)
            exact: Array = ndtr(-ndtri(rates) - self._mu)
            return exact
        flat = rates.reshape(-1, 1)
        roles = [
            np.maximum(_envelope(flat, self._eps, here), _dual_envelope(flat, self._eps, there))
            for here, there in ((self._remove, self._add), (self._add, self._remove))
        ]
        lower: Array = np.clip(np.minimum(*roles), 0.0, 1.0).reshape(rates.shape)[()]
        return lower

    def tpr(self, fpr: npt.ArrayLike) -> Array:
        """Largest true-positive rate of any membership attack at false-positive rate ``fpr``; same shape.

        Also the largest chance of a reconstruction whose blind guess succeeds with chance ``fpr`` (arXiv
        2307.03928).
        """
        rate: Array = 1.0 - self.beta(fpr)
        return rate

    @property
    def membership_advantage(self) -> float:
        """Largest TPR - FPR of any membership attack: delta at eps = 0."""
        if self._broken:
            return 1.0
        if self._exact:
            return math.erf(self._mu / math.sqrt(8.0))
        return float(max(self._remove[0], self._add[0]))

    def points(self, count: int = 201) -> tuple[Array, Array]:
        """About ``count`` pairs (alpha, beta) for plotting, dense at both ends; two arrays of one length."""
        half = np.logspace(-6.0, math.log10(0.5), max(2, (count - 1) // 2))
        alpha = np.unique(np.concatenate(([0.0], half, 1.0 - half, [1.0])))
        return alpha, self.beta(alpha)


def _envelope(alpha: Array, eps: Array, delta: Array) -> Array:
    """beta >= 1 - delta(eps) - e^eps alpha for every line; (m, 1) -> (m,)."""
    lines: Array = np.max(1.0 - delta - np.exp(eps) * alpha, axis=1)
    return lines


def _dual_envelope(alpha: Array, eps: Array, delta: Array) -> Array:
    """beta >= e^-eps (1 - delta(eps) - alpha): the complement of the test, seen in the other direction."""
    lines: Array = np.max(np.exp(-eps) * (1.0 - delta - alpha), axis=1)
    return lines


def _profile_beside(rest: Sequence[LedgerEntry], losses: Losses) -> tuple[Array, Array]:
    """A grid of eps and delta(eps) of the rest with randomised labels, a bound in both directions; both (lines,)."""
    accountant = PLDAccountant()
    # Where labels take part, a sampled profile costs a look-up for each loss and line: fewer lines, still a bound.
    lines = _CLOSED_FORM_LINES if is_sampled(rest) else _LINES
    last = max(loss for loss, _ in losses) + (accountant.epsilon(rest, min(0.5, 1e-9 + 2.0 * failure(rest))))
    eps = np.linspace(0.0, min(_MAX_EPS, max(1e-3, last)), lines)
    return eps, np.array([delta_beside(rest, losses, float(e), accountant.gaussian_delta) for e in eps])


def _profiles(entries: Sequence[LedgerEntry]) -> tuple[Array, Array, Array]:
    """A grid of eps from 0 on and delta(eps) in both directions, all (lines,)."""
    accountant = PLDAccountant()
    lost = failure(entries)
    last = min(_MAX_EPS, max(1e-3, accountant.epsilon(entries, min(0.5 + 0.5 * lost, 1e-9 + lost))))
    eps = np.linspace(0.0, last, _LINES)
    # The closed forms hold in both directions; delta falls with eps, so a value holds for every larger eps as
    # well.
    coarse = np.linspace(0.0, last, _CLOSED_FORM_LINES)
    closed = np.array([ClosedFormAccountant().delta(entries, float(e)) for e in coarse])
    bound = closed[np.searchsorted(coarse, eps, side="right") - 1]
    composition = accountant.composition(entries)
    if composition is None:
        return eps, bound, bound
    remove, add = composition.profiles(eps)
    return eps, np.minimum(bound, remove + lost), np.minimum(bound, add + lost)

"""The sensitivity index psi: one number for a Gaussian mechanism and every attack on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri

from lightning_dp.accounting.accountants import AccountantName, check_delta, check_eps, get_accountant
from lightning_dp.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from lightning_dp.accounting.ledger import LedgerEntry
from lightning_dp.errors import PrivacyConfigError

__all__ = ("SensitivityIndex", "equivalent_sensitivity_index")


@dataclass(frozen=True)
class SensitivityIndex:
    """psi = sensitivity / noise standard deviation (Kaissis et al. 2021, arXiv 2109.10528).

    It is signal detection theory's d' and the mu of Gaussian differential privacy. Everything below is exact
    for the Gaussian mechanism *without* subsampling; see :func:`equivalent_sensitivity_index` for anything
    else.

    Args:
        psi: In [0, inf]; 0 is perfect privacy, inf none.

    Raises:
        PrivacyConfigError: If ``psi`` is negative or NaN.
    """

    psi: float

    def __post_init__(self) -> None:
        if not self.psi >= 0.0:
            raise PrivacyConfigError(f"psi must be >= 0, got {self.psi}: it is sensitivity / noise standard deviation.")

    @classmethod
    def from_eps_delta(cls, eps: float, delta: float) -> SensitivityIndex:
        """The largest index that is (eps, delta)-private."""
        return cls(gaussian_mu(check_eps(eps, zero=True), check_delta(delta)))

    @classmethod
    def from_auc(cls, auc: float) -> SensitivityIndex:
        """The index at which the best attack has this area under the ROC curve, in [0.5, 1]."""
        if not 0.5 <= auc <= 1.0:
            raise PrivacyConfigError(f"auc must lie in [0.5, 1], got {auc}: an attack below 0.5 is inverted.")
        return cls(math.sqrt(2.0) * float(ndtri(auc)))

    def eps(self, delta: float) -> float:
        """Smallest eps at ``delta``."""
        return gaussian_epsilon(self.psi, check_delta(delta))

    def delta(self, eps: float) -> float:
        """Smallest delta at ``eps``."""
        eps = check_eps(eps, zero=True)
        return 1.0 if math.isinf(self.psi) else float(gaussian_delta(self.psi, eps))

    @property
    def auc(self) -> float:
        """Area under the ROC curve of the best membership attack, Phi(psi / sqrt 2)."""
        return float(ndtr(self.psi / math.sqrt(2.0)))

    @property
    def advantage(self) -> float:
        """Largest TPR - FPR of a membership attack: the total variation 2 Phi(psi / 2) - 1."""
        return math.erf(self.psi / math.sqrt(8.0))

    @property
    def balanced_accuracy(self) -> float:
        """Largest balanced accuracy of a membership attack, Phi(psi / 2)."""
        return float(ndtr(0.5 * self.psi))

    def tpr(self, fpr: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Largest true-positive rate at a false-positive rate, Phi(Phi^-1(fpr) + psi); any shape.

        It is also the largest chance of a reconstruction whose blind guess succeeds with chance ``fpr``
        (arXiv 2307.03928).
        """
        rates = np.asarray(fpr, dtype=np.float64)
        _check_rates(rates)
        if math.isinf(self.psi):
            return np.ones_like(rates)[()]
        # Through the log cdf, so that the far tail keeps its digits; both ends are exact.
        powers: npt.NDArray[np.float64] = np.exp(log_ndtr(ndtri(rates) + self.psi))
        return powers

    def compose(self, *others: SensitivityIndex) -> SensitivityIndex:
        """Index of the mechanisms run together: the root of the sum of squares."""
        return SensitivityIndex(math.hypot(self.psi, *(other.psi for other in others)))

    def group(self, k: int) -> SensitivityIndex:
        """Index for ``k`` units at once."""
        if k < 1:
            raise PrivacyConfigError(f"a group has at least one unit, got k={k}.")
        return SensitivityIndex(k * self.psi)

    def rdp(self, alpha: float) -> float:
        """Renyi divergence of order ``alpha`` >= 1, alpha psi^2 / 2."""
        if not alpha >= 1.0:
            raise PrivacyConfigError(f"alpha must be >= 1, got {alpha}.")
        return 0.5 * alpha * self.psi * self.psi


def equivalent_sensitivity_index(
    entries: Sequence[LedgerEntry], delta: float, accountant: AccountantName = "pld"
) -> SensitivityIndex:
    """The psi of the Gaussian mechanism with the same (eps, delta): an approximation, not a guarantee.

    Subsampled mechanisms are not Gaussian. The two agree at the one ``delta``; elsewhere on the trade-off
    curve the attacker may do better than this index says. Use :class:`~lightning_dp.accounting.TradeOffCurve`
    for bounds.
    """
    eps = get_accountant(accountant).epsilon(entries, delta)
    if not entries:
        return SensitivityIndex(0.0)
    return SensitivityIndex(math.inf) if math.isinf(eps) else SensitivityIndex.from_eps_delta(eps, delta)


def _check_rates(rates: npt.NDArray[np.float64]) -> None:
    if not np.all((rates >= 0.0) & (rates <= 1.0)):
        raise PrivacyConfigError("error rates must lie in [0, 1].")

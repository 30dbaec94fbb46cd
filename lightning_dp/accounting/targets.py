"""What a run may spend: an eps at delta, or a limit on the success of an attack."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from lightning_dp.accounting.accountants import (
    AccountantName,
    ClosedFormAccountant,
    PLDAccountant,
    check_delta,
    check_eps,
    get_accountant,
)
from lightning_dp.accounting.ledger import LedgerEntry
from lightning_dp.accounting.risk.closed_forms import kappa_of
from lightning_dp.accounting.risk.reconstruction import Effort, reconstruction_gamma
from lightning_dp.errors import PrivacyConfigError

__all__ = ("EpsilonTarget", "MembershipRisk", "ReconstructionRisk", "Target")


class Target(ABC):
    """A limit on what a whole ledger may have spent.

    **Contract**: :meth:`measure` is an upper bound, at any effort; it is 0 for an empty ledger and never falls when steps are
    added. Noise is calibrated, and training ended, so that it never exceeds :attr:`limit`.
    """

    @property
    @abstractmethod
    def limit(self) -> float:
        """Largest value of :meth:`measure` that is allowed, > 0."""

    @property
    @abstractmethod
    def slack(self) -> float:
        """What the chance of a step that is not the mechanism it should be (a cut draw) must stay below."""

    @abstractmethod
    def resolved(self, dataset_size: int) -> Target:
        """The same target with what depends on the number of units filled in."""

    @abstractmethod
    def measure(self, entries: Sequence[LedgerEntry], effort: Effort = "full") -> float:
        """Upper bound on what is limited: by ``"closed"`` forms, on a ``"coarse"`` grid, or ``"full"`` (which decides)."""

    @abstractmethod
    def reading(self, entries: Sequence[LedgerEntry]) -> str:
        """What a ledger has spent, in words."""

    def within(self, entries: Sequence[LedgerEntry]) -> bool:
        """Whether a ledger keeps to the target."""
        return self.measure(entries) <= self.limit


@dataclass(frozen=True)
class EpsilonTarget(Target):
    """(eps, delta)-differential privacy.

    Args:
        eps: Budget, > 0, finite.
        delta: In (0, 1); ``None`` means 1/(10 n).
        accountant: Which accountant decides.

    Raises:
        PrivacyConfigError: For values out of range.
    """

    eps: float
    delta: float | None = None
    accountant: AccountantName = "pld"

    def __post_init__(self) -> None:
        check_eps(self.eps)
        get_accountant(self.accountant)
        if self.delta is not None:
            check_delta(self.delta)

    @property
    def limit(self) -> float:
        """Eps."""
        return self.eps

    @property
    def slack(self) -> float:
        """Delta."""
        return self._delta

    @property
    def _delta(self) -> float:
        if self.delta is None:
            raise PrivacyConfigError("delta=None means 1/(10 n): call resolved(n) first, or give delta.")
        return self.delta

    @override
    def resolved(self, dataset_size: int) -> EpsilonTarget:
        return self if self.delta is not None else replace(self, delta=1.0 / (10 * dataset_size))

    @override
    def measure(self, entries: Sequence[LedgerEntry], effort: Effort = "full") -> float:
        if effort == "closed":
            return ClosedFormAccountant().epsilon(entries, self._delta)
        if effort == "coarse" and self.accountant == "pld":
            return PLDAccountant(coarsening=2).epsilon(entries, self._delta)
        return get_accountant(self.accountant).epsilon(entries, self._delta)

    @override
    def reading(self, entries: Sequence[LedgerEntry]) -> str:
        return f"eps = {self.measure(entries):.4g} at delta = {self._delta:g}"

    def __str__(self) -> str:
        return f"eps <= {self.eps:g}" + ("" if self.delta is None else f" at delta = {self.delta:g}")


@dataclass(frozen=True)
class ReconstructionRisk(Target):
    """No attack reconstructs a unit with a chance above ``gamma`` where a blind guess has chance ``kappa``.

    The strongest attacker counts: see :func:`~lightning_dp.accounting.reconstruction_bound`.

    Args:
        gamma: Largest chance of success, in (kappa, 1).
        kappa: Chance of the best blind guess, in (0, 1); ``None`` means 1/n, a guess among the n units.

    Raises:
        PrivacyConfigError: For values out of range; for ``kappa=None`` once n is known.
    """

    gamma: float
    kappa: float | None = None

    def __post_init__(self) -> None:
        _check_chance("gamma", self.gamma)
        if self.kappa is None:
            return
        _check_chance("kappa", self.kappa)
        if self.kappa >= self.gamma:
            raise PrivacyConfigError(
                f"gamma={self.gamma:g} is not above kappa={self.kappa:g}: a blind guess alone succeeds with chance kappa, so "
                "no noise keeps attacks below it. Raise gamma, or correct kappa."
            )

    @property
    def limit(self) -> float:
        """What an attack may add to the blind guess, gamma - kappa."""
        return self.gamma - self._kappa

    @property
    def slack(self) -> float:
        """The same."""
        return self.limit

    @property
    def _kappa(self) -> float:
        if self.kappa is None:
            raise PrivacyConfigError("kappa=None means 1/n: call resolved(n) first, or give kappa.")
        return self.kappa

    @override
    def resolved(self, dataset_size: int) -> ReconstructionRisk:
        return self if self.kappa is not None else replace(self, kappa=kappa_of(None, dataset_size))

    @override
    def measure(self, entries: Sequence[LedgerEntry], effort: Effort = "full") -> float:
        return reconstruction_gamma(entries, self._kappa, effort) - self._kappa

    @override
    def reading(self, entries: Sequence[LedgerEntry]) -> str:
        return f"gamma = {self.measure(entries) + self._kappa:.4g} at kappa = {self._kappa:g}"

    def __str__(self) -> str:
        kappa = "1/n" if self.kappa is None else f"{self.kappa:g}"
        return f"reconstruction gamma <= {self.gamma:g} at kappa = {kappa}"


@dataclass(frozen=True)
class MembershipRisk(Target):
    """No attack can tell better than this whether a unit was used.

    Give either ``advantage``, or ``tpr`` and ``fpr``.

    Args:
        advantage: Largest true-positive rate minus false-positive rate, in (0, 1).
        tpr: Largest true-positive rate at ``fpr``, in (fpr, 1).
        fpr: False-positive rate, in (0, 1).

    Raises:
        PrivacyConfigError: For values out of range, or both ways of asking at once.
    """

    advantage: float | None = None
    tpr: float | None = None
    fpr: float | None = None

    def __post_init__(self) -> None:
        if (self.tpr is None) != (self.fpr is None) or (self.advantage is None) == (self.tpr is None):
            raise PrivacyConfigError(
                "MembershipRisk takes either advantage, or tpr together with fpr: MembershipRisk(advantage=0.1), "
                "MembershipRisk(tpr=0.01, fpr=0.001)."
            )
        if self.advantage is not None:
            _check_chance("advantage", self.advantage)
            return
        assert self.tpr is not None
        assert self.fpr is not None
        _check_chance("tpr", self.tpr)
        _check_chance("fpr", self.fpr)
        if self.fpr >= self.tpr:
            raise PrivacyConfigError(
                f"tpr={self.tpr:g} is not above fpr={self.fpr:g}, which a coin reaches: no noise gets there."
            )

    @property
    def limit(self) -> float:
        """The advantage, or what an attack may add to the false-positive rate."""
        if self.advantage is not None:
            return self.advantage
        assert self.tpr is not None
        assert self.fpr is not None
        return self.tpr - self.fpr

    @property
    def slack(self) -> float:
        """The same."""
        return self.limit

    @override
    def resolved(self, dataset_size: int) -> MembershipRisk:
        return self

    @override
    def measure(self, entries: Sequence[LedgerEntry], effort: Effort = "full") -> float:
        if self.fpr is not None:
            return reconstruction_gamma(entries, self.fpr, effort) - self.fpr
        if not entries:
            return 0.0
        if effort == "closed":
            return ClosedFormAccountant().delta(entries, 0.0)
        # The advantage is the total variation, which is delta at eps = 0.
        return PLDAccountant(coarsening=2 if effort == "coarse" else 0).delta(entries, 0.0)

    @override
    def reading(self, entries: Sequence[LedgerEntry]) -> str:
        value = self.measure(entries)
        if self.fpr is not None:
            return f"TPR = {value + self.fpr:.4g} at FPR = {self.fpr:g}"
        return f"membership advantage = {value:.4g}"

    def __str__(self) -> str:
        if self.advantage is not None:
            return f"membership advantage <= {self.advantage:g}"
        return f"membership TPR <= {self.tpr:g} at FPR = {self.fpr:g}"


def _check_chance(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and 0.0 < value < 1.0):  # type: ignore[arg-type, operator]
        raise PrivacyConfigError(f"{name}={value!r} must be a number strictly between 0 and 1: it is a chance.")

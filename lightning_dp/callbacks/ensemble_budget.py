"""What several models trained on private data have spent together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_dp.accounting import RELATION, PrivacyLedger, PrivacySpent, privacy_spent
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.accounting.ledger import relation_of
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.errors import PrivacyConfigError, PrivacyError

__all__ = ("CHECKPOINT_KEY", "EnsembleBudget", "Spending", "ensemble_budget")

#: Where a private strategy keeps its state in a checkpoint.
CHECKPOINT_KEY = "lightning_dp"


@dataclass(frozen=True)
class Spending:
    """What led to one model.

    Attributes:
        ledger: the state of its `PrivacyLedger`.
        delta: the slack of its guarantee.
        unit: what its guarantee is about.
        accountant: the accountant it was quoted by.
    """

    ledger: Mapping[str, Any]
    delta: float
    unit: str
    accountant: AccountantName

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any], name: str) -> Spending | None:
        """The spending in a loaded checkpoint; None if it is not of a private run.

        Raises:
            PrivacyError: the checkpoint is of a private run and its spending cannot be read, or there is none.
        """
        if CHECKPOINT_KEY not in checkpoint:
            return None
        try:
            budget = checkpoint[CHECKPOINT_KEY]["budget"]
            found = cls(budget["ledger"], float(budget["delta"]), budget["unit"], budget["accountant"])
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(
                f"The privacy record of {name} cannot be read ({type(error).__name__}: {error}), so what its weights have "
                "spent is unknown. Use an intact checkpoint written by this version."
            ) from error
        return found._checked(name)

    @classmethod
    def of_strategy(cls, strategy: Any, name: str) -> Spending | None:
        """The spending of a strategy that has trained; None if it is not private.

        Raises:
            PrivacyError: the strategy is private and its ledger is empty or incomplete.
        """
        if not isinstance(strategy, PrivateStrategy):
            return None
        ledger = strategy.ledger.state_dict()
        if not strategy.ledger.steps:
            raise _empty(name)
        spent = strategy.privacy_spent()  # also refuses a ledger that is known to be incomplete
        return cls(ledger, spent.delta, spent.unit, spent.accountant)  # type: ignore[arg-type]

    def _checked(self, name: str) -> Spending:
        if not self.merged(self).steps:
            raise _empty(name)
        return self

    @staticmethod
    def merged(*spendings: Spending) -> PrivacyLedger:
        """One ledger of all: what two of them share (a common beginning, one chain) is in it once."""
        ledger = PrivacyLedger()
        for one in spendings:
            ledger.merge(one.ledger)
        return ledger

    @property
    def segments(self) -> frozenset[str]:
        """Names of the runs that have charged something."""
        return frozenset(name for name, history in self.ledger["segments"].items() if history)


@dataclass(frozen=True)
class EnsembleBudget:
    """What the members of an ensemble have spent together, and why that is what it is.

    Attributes:
        members: how many members there are.
        spent: the whole spending; None if a member was trained without differential privacy.
        composition: ``"added"``: the members' ledgers are composed; ``"shared"``: all members come of one ledger, so that
            one member costs as much as all; ``"parallel"``: the members' data were declared disjoint; ``"none"``: there is
            no guarantee.
        alone: eps of each member by itself, at the same delta; inf without privacy.
    """

    members: int
    spent: PrivacySpent | None
    composition: Literal["added", "shared", "parallel", "none"]
    alone: tuple[float, ...]

    @property
    def eps(self) -> float:
        """Eps of releasing all members; inf without a guarantee."""
        return math.inf if self.spent is None else self.spent.eps

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON: an eps that is not finite is None."""
        return {
            "members": self.members,
            "composition": self.composition,
            "eps": self.eps if math.isfinite(self.eps) else None,
            "delta": None if self.spent is None else self.spent.delta,
            "unit": None if self.spent is None else self.spent.unit,
            "alone": [eps if math.isfinite(eps) else None for eps in self.alone],
            "says": str(self),
        }

    def __str__(self) -> str:
        if self.spent is None:
            open_members = sum(math.isinf(eps) for eps in self.alone)
            return (
                f"{self.members} members without a joint guarantee (eps = inf): {open_members} of them were trained without "
                "differential privacy"
            )
        says = {
            "added": "their budgets added up",
            "shared": "all from one ledger, so that one costs as much as all",
            "parallel": "trained on data that were declared disjoint, so that the largest of their budgets counts",
            "none": "",
        }[self.composition]
        return f"{self.members} members, {says}: {self.spent}"


def ensemble_budget(
    spendings: Sequence[Spending | None], disjoint: bool = False, accountant: AccountantName | None = None
) -> EnsembleBudget:
    """What the release of all members, or of anything computed from them, costs.

    **Guarantee**: the composition of all that is in the members' ledgers, each charge once. Members of separate runs on
    the same data add up. Members of one ledger (iterates of one chain, checkpoints of one run) are covered by it together.
    With ``disjoint=True`` the caller declares that no unit (sample, or patient) was in the training data of two members:
    then a unit concerns one member only, and the largest of their eps at the common delta holds (parallel composition).

    Args:
        spendings: of each member; None for a member trained without differential privacy.
        disjoint: whether no unit is in the training data of two members.
        accountant: the accountant; None: the first member's.

    Returns:
        The budget, at the smallest delta of the members.

    Raises:
        PrivacyConfigError: no members, guarantees about different units, ``disjoint`` for members that share a ledger or for
            another relation than add-or-remove-one.
        PrivacyError: guarantees under different neighbouring relations.
    """
    if not spendings:
        raise PrivacyConfigError("an ensemble needs at least one member.")
    known = [one for one in spendings if one is not None]
    units = sorted({one.unit for one in known})
    if len(units) > 1:
        raise PrivacyConfigError(
            f"the members protect different units ({', '.join(units)}): budgets of different units do not add up to one eps. "
            "Train all members with the same unit."
        )
    if not known:
        return EnsembleBudget(len(spendings), None, "none", tuple(math.inf for _ in spendings))
    entries = Spending.merged(*known).entries  # also refuses guarantees of different neighbouring relations
    delta, name = min(one.delta for one in known), accountant or known[0].accountant
    each: dict[tuple[Any, ...], float] = {}  # members of one ledger, or of like runs, are accounted once

    def eps_alone(one: Spending) -> float:
        entries = one.merged(one).entries
        if entries not in each:
            each[entries] = privacy_spent(entries, delta, name, one.unit).eps
        return each[entries]

    alone = tuple(math.inf if one is None else eps_alone(one) for one in spendings)
    if len(known) < len(spendings):
        return EnsembleBudget(len(spendings), None, "none", alone)
    if disjoint:
        seen: set[str] = set()
        for one in known:
            if seen & one.segments:
                raise PrivacyConfigError(
                    "disjoint=True, but members share a part of their ledgers: they come of one run on one data set, or "
                    "were trained on from one checkpoint. Leave disjoint out; what they share is counted once."
                )
            seen |= one.segments
        if relation_of(entries) != RELATION:
            raise PrivacyConfigError(
                f"disjoint=True is for guarantees under {RELATION}: under another relation a record that takes the place of "
                "another may be in another member's data, and concern two members. Leave disjoint out."
            )
        worst = known[alone.index(max(alone))]
        return EnsembleBudget(
            len(known), privacy_spent(worst.merged(worst).entries, delta, name, units[0]), "parallel", alone
        )
    shared = len({one.segments for one in known}) == 1
    return EnsembleBudget(
        len(known), privacy_spent(entries, delta, name, units[0]), "shared" if shared else "added", alone
    )


def _empty(name: str) -> PrivacyError:
    return PrivacyError(
        f"The privacy ledger of {name} is empty, so what its weights have spent is unknown: a strategy that only tests does "
        "not take over the ledger of the checkpoint it loads. Use the strategy that trained, or name the checkpoint "
        "(checkpoint=...), which carries the ledger."
    )

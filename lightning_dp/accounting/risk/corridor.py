"""The risk corridor: one ledger against attackers of different strength, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dp.accounting.ledger import LedgerEntry, merge_entries
from lightning_dp.accounting.risk.closed_forms import kappa_of
from lightning_dp.accounting.risk.from_scratch import FromScratchAttack, Observed, from_scratch_attack
from lightning_dp.accounting.risk.reconstruction import ReconstructionBound
from lightning_dp.accounting.risk.relaxed import RelaxedRisk, relaxed_risk

__all__ = ("RiskCorridor", "RiskRow", "risk_corridor")


@dataclass(frozen=True)
class RiskRow:
    """One line of a table of risks.

    Attributes:
        name: the attacker.
        probability: its chance of success.
        is_guarantee: whether no attacker at all can exceed it.
        meaning: the number in words, with what it assumes.
    """

    name: str
    probability: float
    is_guarantee: bool
    meaning: str


@dataclass(frozen=True)
class RiskCorridor:
    """The chance of reconstruction between the attacker that knows everything and the one that knows nothing.

    Only :attr:`worst_case` is a guarantee. The three numbers answer different questions: the first two, how often one of the
    candidates is identified where a blind guess has chance ``kappa``; the last, how often an image made from nothing has at
    most the error ``mse``.

    Attributes:
        kappa: chance of a blind guess among candidates.
        worst_case: upper bound for every attacker.
        relaxed: an attacker that does not know what to look for; **not** a guarantee.
        attack: the law of from-scratch reconstruction; ``None`` without a dimension. **Not** a guarantee.
        mse: mean squared error that counts as a success from scratch.
        from_scratch: P(MSE <= mse).
    """

    kappa: float
    worst_case: ReconstructionBound
    relaxed: RelaxedRisk
    attack: FromScratchAttack | None = None
    mse: float | None = None
    from_scratch: float | None = None

    def rows(self) -> tuple[RiskRow, ...]:
        """The corridor as a table, strongest attacker first."""
        guess = f"where a blind guess has {self.kappa:.3g}"
        found = [
            RiskRow(
                "worst case",
                self.worst_case.gamma,
                True,
                f"no attacker reconstructs a sample more often, {guess}, even if it knows all other samples and every gradient",
            ),
            RiskRow(
                "relaxed threat model",
                self.relaxed.gamma,
                False,
                f"not a differential-privacy guarantee; {guess}: {self.relaxed.convention}",
            ),
        ]
        if self.attack is not None and self.from_scratch is not None:
            found.append(
                RiskRow(
                    "from scratch",
                    self.from_scratch,
                    False,
                    f"not a differential-privacy guarantee: chance that a server which chooses the model, but knows nothing of "
                    f"the sample, rebuilds it with a mean squared error of at most {self.mse:.3g}",
                )
            )
        return tuple(found)


def risk_corridor(
    entries: Sequence[LedgerEntry],
    *,
    kappa: float | None = None,
    dataset_size: int | None = None,
    dimension: int | None = None,
    data_norm: float = 1.0,
    data_range: float = 1.0,
    mse: float | None = None,
    observed: Observed = "expected",
) -> RiskCorridor:
    """All three attackers on one ledger.

    Args:
        entries: Any ledger's entries.
        kappa: Chance of a blind guess; ``None`` means 1/``dataset_size``.
        dataset_size: Number n of units; needed without ``kappa``.
        dimension: How many numbers a sample consists of; ``None`` leaves the from-scratch attack out.
        data_norm: Smallest L2 norm of a sample.
        data_range: Largest minus smallest value of a number.
        mse: Error that counts as a success from scratch; ``None`` takes what answering zero achieves, |X|^2 / N.
        observed: See :func:`from_scratch_attack`.

    Raises:
        PrivacyConfigError: For values out of range, or if neither ``kappa`` nor ``dataset_size`` is given.
    """
    merged = merge_entries(entries)
    relaxed = relaxed_risk(merged, kappa_of(kappa, dataset_size))
    worst = relaxed.worst_case
    if dimension is None:
        return RiskCorridor(worst.kappa, worst, relaxed)
    attack = from_scratch_attack(merged, dimension, data_norm, data_range, observed)
    limit = data_norm**2 / dimension if mse is None else float(mse)
    return RiskCorridor(worst.kappa, worst, relaxed, attack, limit, float(attack.mse_cdf(limit)))

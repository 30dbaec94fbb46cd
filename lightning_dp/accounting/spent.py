"""The sentence that belongs to a private model: what was spent, and under which assumptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dp.accounting.accountants import AccountantName, check_delta, get_accountant
from lightning_dp.accounting.events import IN_PASSES, RELATION, RandomizedResponseEvent
from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps, merge_entries, relation_of
from lightning_dp.accounting.responses import without_responses
from lightning_dp.accounting.tradeoff import TradeOffCurve

__all__ = ("PrivacySpent", "privacy_spent", "rounded_up")


@dataclass(frozen=True)
class PrivacySpent:
    """An eps with everything one must know to quote it.

    Args:
        eps: Upper bound on the smallest eps at ``delta``; inf without noise.
        delta: The chance-like slack of the guarantee.
        accountant: Name of the accountant.
        sampling: ``"poisson"``, ``"truncated_poisson"``, ``"balls_in_bins"``, ``"shuffle"``, ``"mixed"``, or
            ``"none"`` for releases of every unit and for an empty ledger.
        relation: The neighbouring relation.
        noise_multiplier: Noise over sensitivity; None if the entries differ.
        sample_rate: Poisson rate; None if the entries differ.
        steps: Number of compositions, randomised labels left out.
        entries: The ledger behind the number.
        unit: What is added or removed: ``"sample"``, or the name of the ids that say whose a sample is.
    """

    eps: float
    delta: float
    accountant: str
    sampling: str
    relation: str
    noise_multiplier: float | None
    sample_rate: float | None
    steps: int
    entries: tuple[LedgerEntry, ...]
    unit: str = "sample"

    def trade_off(self) -> TradeOffCurve:
        """The whole trade-off curve, of which (eps, delta) is one line."""
        return TradeOffCurve(self.entries)

    def __str__(self) -> str:
        relation = self.relation.replace("_", " ") + ("" if self.unit == "sample" else f" unit ({self.unit})")
        what = "steps"
        if self.sampling == "none":
            what = "release" if self.steps == 1 else "releases"
        elif self.sampling in IN_PASSES:
            what = "pass" if self.steps == 1 else "passes"
        return (
            f"eps = {rounded_up(self.eps)} at delta = {self.delta:.4g} ({relation}; {self._sampling()}; "
            f"{self.accountant} accountant; {self.steps} {what})"
        )

    def _sampling(self) -> str:
        phrases = []
        gaussians = [event for event, _ in gaussian_steps(without_responses(self.entries)[0])]
        rates = sorted({event.sample_rate for event in gaussians if event.sampling == "poisson"})
        if rates:
            phrases.append("Poisson sampling, q = " + " and ".join(f"{rate:.4g}" for rate in rates))
        cut = sorted({event.sample_rate for event in gaussians if event.sampling == "truncated_poisson"})
        if cut:
            phrases.append("Poisson sampling cut at a maximum, q = " + " and ".join(f"{rate:.4g}" for rate in cut))
        passes = sorted({event.bins for event in gaussians if event.sampling == "balls_in_bins"})
        if passes:
            phrases.append("balls-in-bins sampling, passes of " + " and ".join(map(str, passes)) + " steps")
        if any(event.sampling == "shuffle" for event in gaussians):
            phrases.append("shuffled, accounted without amplification")
        if any(event.sampling == "none" for event in gaussians):
            phrases.append("every sample released with noise, no amplification")
        answers = [e.event for e in self.entries if isinstance(e.event, RandomizedResponseEvent)]
        phrases += [f"labels randomised at eps {event.eps:.4g} of {event.num_classes} classes" for event in answers]
        return " and ".join(phrases) or "nothing sampled"


def privacy_spent(
    entries: Sequence[LedgerEntry], delta: float, accountant: AccountantName = "pld", unit: str = "sample"
) -> PrivacySpent:
    """What a ledger's entries have spent at ``delta``, on units of the given name.

    Raises:
        PrivacyConfigError: If ``delta`` is not in (0, 1) or the accountant is unknown.
    """
    merged = merge_entries(entries)
    rest, _ = without_responses(merged)
    events = [event for event, _ in gaussian_steps(rest)]
    sigmas, rates, samplings = (
        {getattr(e, f) for e in events} for f in ("noise_multiplier", "sample_rate", "sampling")
    )
    return PrivacySpent(
        eps=get_accountant(accountant).epsilon(merged, check_delta(delta)),
        delta=delta,
        accountant=accountant,
        sampling=samplings.pop() if len(samplings) == 1 else ("mixed" if samplings else "none"),
        relation=relation_of(merged) or RELATION,
        noise_multiplier=sigmas.pop() if len(sigmas) == 1 else None,
        sample_rate=rates.pop() if len(rates) == 1 else None,
        steps=sum(entry.steps for entry in rest),
        entries=merged,
        unit=unit,
    )


def rounded_up(bound: float) -> str:
    """Four digits, rounded up: a printed bound is an upper bound as well."""
    if bound == 0.0 or not math.isfinite(bound):
        return f"{bound:.4g}"
    digit = 10.0 ** (math.floor(math.log10(bound)) - 3)
    text = f"{bound:.4g}"
    return text if float(text) >= bound else f"{float(text) + digit:.4g}"

"""Reconstruction robustness and membership bounds of any ledger, against the strongest attacker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import ndtr, ndtri

from lightning_dp.accounting.accountants import (
    PLDAccountant,
    closed_form_powers,
    failure,
    is_sampled,
    without_noise,
)
from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps, merge_entries
from lightning_dp.accounting.responses import without_responses
from lightning_dp.accounting.risk.closed_forms import check_kappa
from lightning_dp.accounting.spent import rounded_up
from lightning_dp.accounting.tradeoff import TradeOffCurve
from lightning_dp.errors import PrivacyConfigError

__all__ = (
    "Direction",
    "Effort",
    "MembershipBound",
    "ReconstructionBound",
    "membership_bound",
    "reconstruction_bound",
    "reconstruction_gamma",
)

Direction = Literal["worst", "remove", "add"]
Effort = Literal["closed", "coarse", "full"]
Side = Literal["remove", "add"]
Method = Literal["nothing released", "no noise", "gaussian", "pld", "closed form"]

#: Grids beside the one that eps needs. A relative error of eps is an absolute one of the exponent, so gamma needs a finer.
_COARSENING: dict[Effort, int] = {"coarse": 1, "full": -2}


@dataclass(frozen=True)
class ReconstructionBound:
    """How often an attack can reconstruct a training sample at most, for one blind-guess chance kappa.

    **Guarantee**: whatever an attacker knows and computes (all other samples, every noisy gradient, the prior), the chance
    that it reconstructs the sample to an accuracy that a blind guess reaches with chance ``kappa`` is at most ``gamma``
    (Kaissis et al. 2023, arXiv 2307.03928, on the trade-off function of the composed ledger).

    Attributes:
        kappa: chance of the best blind guess.
        gamma: upper bound on the chance of any attack.
        error: by how much ``gamma`` may exceed the exact value. Zero where a closed form is exact; otherwise the lesser of
            the distance to an attack that is known to exist (a true bound on the error), and of what a grid of losses twice
            as wide adds (an estimate, about three times what is left, as the error falls with the square).
        direction: which null hypothesis counted: ``"remove"``, the run without the sample, or ``"add"``, the run with it.
        method: where the number comes from: ``"gaussian"`` is exact, ``"pld"`` a grid of losses, ``"closed form"`` the bounds
            that serve where no grid is affordable or rounding would swamp it.
        steps: compositions in the ledger.
    """

    kappa: float
    gamma: float
    error: float
    direction: Side
    method: Method
    steps: int

    def __str__(self) -> str:
        return (
            f"reconstruction succeeds with chance at most {rounded_up(self.gamma)} where a blind guess has {self.kappa:.3g} "
            f"({self.method}, {self.steps} steps)"
        )


@dataclass(frozen=True)
class MembershipBound:
    """How well an attack can tell at most whether a unit was used. A guarantee against every attacker.

    Attributes:
        advantage: largest true-positive rate minus false-positive rate.
        fpr: false-positive rates.
        tpr: largest true-positive rate at each of them.
    """

    advantage: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


def reconstruction_bound(
    entries: Sequence[LedgerEntry], kappa: float, direction: Direction = "worst"
) -> ReconstructionBound:
    """Upper bound gamma(kappa) on the success of every reconstruction attack on a ledger.

    Without amplification the Gaussian closed form is exact. Otherwise the least of three upper bounds counts: the
    composed loss distributions on a pessimistic grid, the bound by participation counts, and the Renyi bound; the last
    two are closed forms, so that huge eps, for which no grid exists, still get a bound. The chance that draws were cut is
    added.

    Args:
        entries: Any ledger's entries; empty means nothing was released, and gamma is kappa.
        kappa: Chance in [0, 1] that a blind guess succeeds: 1/n for "one of n training samples".
        direction: The null hypothesis: ``"remove"``, the run without the sample, is the one that the papers' tables use
            and all that their theorem needs; ``"add"``, the run with it; ``"worst"``, the larger power of the two.

    Raises:
        PrivacyConfigError: If ``kappa`` or ``direction`` is out of range.
    """
    kappa, merged = float(check_kappa(kappa)), merge_entries(entries)
    gamma, side, method = _bound(merged, kappa, "full", direction)
    error = failure(merged) if method == "gaussian" else 0.0
    if method in ("pld", "closed form"):
        # The known attack belongs to the null hypothesis without the sample; the worse direction is no better than it.
        gaussians, _ = without_responses(merged)
        error = max(0.0, gamma - (kappa if direction == "add" else _known_attack(gaussians, kappa)))
        # A pass over bins has a grid of its own inside its profile, of which a wider grid of losses says nothing.
        if method == "pld" and not any(event.bins > 1 for event, _ in gaussian_steps(gaussians)):
            error = min(error, _grid_error(merged, kappa, side))
    return ReconstructionBound(kappa, gamma, error, side, method, sum(entry.steps for entry in merged))


def reconstruction_gamma(
    entries: Sequence[LedgerEntry], kappa: float, effort: Effort = "full", direction: Direction = "worst"
) -> float:
    """The bound alone, for searches: ``"closed"`` forms only, a ``"coarse"`` grid, or ``"full"``; all are upper bounds."""
    return _bound(merge_entries(entries), float(check_kappa(kappa)), effort, direction)[0]


def membership_bound(entries: Sequence[LedgerEntry], fpr: Sequence[float] = (1e-3, 1e-2, 1e-1)) -> MembershipBound:
    """Bounds on membership attacks: the advantage, and the true-positive rates at some false-positive rates.

    A true-positive rate at a false-positive rate is gamma at kappa, in the worse direction.
    """
    rates = tuple(float(rate) for rate in np.atleast_1d(check_kappa(fpr)))
    advantage = PLDAccountant().delta(entries, 0.0)
    return MembershipBound(advantage, rates, tuple(reconstruction_gamma(entries, rate) for rate in rates))


def _bound(
    entries: Sequence[LedgerEntry], kappa: float, effort: Effort, direction: Direction
) -> tuple[float, Side, Method]:
    """The bound, the null hypothesis that counted, and where it comes from."""
    if direction not in get_args(Direction):
        raise PrivacyConfigError(f"direction must be one of {get_args(Direction)}, got {direction!r}.")
    if not entries:
        return kappa, "remove", "nothing released"
    rest, losses = without_responses(entries)
    if losses:  # randomised labels: the attacker sees the answers as well
        return max(kappa, float(TradeOffCurve(entries).tpr(kappa))), "remove", "closed form"
    if without_noise(rest) or failure(entries) >= 1.0:
        return 1.0, "remove", "no noise"
    found = {side: _of_side(entries, kappa, effort, side) for side in get_args(Side)}
    side: Side = max(found, key=lambda s: found[s][0]) if direction == "worst" else direction
    return found[side][0], side, found[side][1]


def _of_side(entries: Sequence[LedgerEntry], kappa: float, effort: Effort, side: Side) -> tuple[float, Method]:
    inside, remove = 0.0 < kappa < 1.0, side == "remove"
    closed = closed_form_powers(entries, kappa)[0 if remove else 1] if inside else min(1.0, kappa + failure(entries))
    if not (inside and is_sampled(entries)):
        return closed, "gaussian"
    composition = None if effort == "closed" else PLDAccountant(_COARSENING[effort]).composition(entries)
    grid = 1.0 if composition is None else min(1.0, composition.power(kappa, remove) + failure(entries))
    # Never below kappa, which ignoring the output reaches: rounding must not claim more.
    return (max(kappa, grid), "pld") if grid < closed else (max(kappa, closed), "closed form")


def _grid_error(entries: Sequence[LedgerEntry], kappa: float, side: Side) -> float:
    """How much a grid twice as wide as the one used adds to gamma, and what is added for cut draws and rounding."""
    remove = side == "remove"
    used = PLDAccountant(_COARSENING["full"]).composition(entries)
    assert used is not None, "a grid gave the bound"
    for coarsening in range(_COARSENING["full"] + 1, 12):
        # Where points are scarce, grids of different coarsening are one and the same.
        wider = PLDAccountant(coarsening).composition(entries)
        if wider is None:
            return 1.0
        if wider.interval > used.interval:
            grid = wider.power(kappa, remove) - used.power(kappa, remove)
            return max(0.0, grid) + failure(entries) + used.rounding
    return 1.0


def _known_attack(entries: Sequence[LedgerEntry], kappa: float) -> float:
    """Power of one test of size kappa that exists, null hypothesis without the unit: is the largest of all steps large?

    Standardised, the steps are independent N(0, 1) without the unit, and with it (1 - q) N(0, 1) + q N(1 / sigma, 1); of a
    pass over bins, one step is N(1 / sigma, 1) and the others are N(0, 1).
    """
    events = gaussian_steps(entries)
    if not (events and 0.0 < kappa < 1.0):
        return kappa
    threshold = float(-ndtri(-math.expm1(math.log1p(-kappa) / sum(steps * event.bins for event, steps in events))))
    log_missed = 0.0
    for event, steps in events:
        kept = event.sample_rate * ndtr(threshold - 1.0 / event.noise_multiplier)
        kept += (1.0 - event.sample_rate) * ndtr(threshold)
        log_missed += steps * math.log(max(float(kept), 1e-300))
        log_missed += steps * (event.bins - 1) * math.log(max(float(ndtr(threshold)), 1e-300))
    return max(kappa, -math.expm1(log_missed))

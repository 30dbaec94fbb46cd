"""Composing Gaussian mechanisms with randomised labels: exactly, through the few losses that an answer can have.

An answer's privacy loss is one of three numbers. Given the answer, the rest of the composition is compared at the eps that
this loss leaves (Kairouz, Oh and Viswanath 2017, arXiv 1311.0776, in the proof of theorem 3.3):

    delta(eps) = sum over losses l of P(l) delta_rest(eps - l).

It never exceeds the sum of the two eps at one delta, and is usually well below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lightning_dp.accounting.events import GaussianEvent, RandomizedResponseEvent
from lightning_dp.accounting.ledger import LedgerEntry

__all__ = ("Losses", "delta_beside", "epsilon_beside", "total_eps", "without_responses")

Losses = tuple[tuple[float, float], ...]
"""Privacy losses of all answers together, and their chances."""

Profile = Callable[[Sequence[LedgerEntry], float], float]

_MOST_ANSWERS = 64  # that are composed exactly; beyond, only their summed eps counts


def without_responses(entries: Sequence[LedgerEntry]) -> tuple[list[LedgerEntry], Losses]:
    """The Gaussian entries, and the losses of the randomised answers: none where there are no answers."""
    rest = [entry for entry in entries if isinstance(entry.event, GaussianEvent)]
    answers = [(entry.event, entry.steps) for entry in entries if isinstance(entry.event, RandomizedResponseEvent)]
    if not answers:
        return rest, ()
    if sum(steps for _, steps in answers) > _MOST_ANSWERS:
        return rest, ((total_eps(entries), 1.0),)
    losses = {0.0: 1.0}
    for event, steps in answers:
        for _ in range(steps):
            sums: dict[float, float] = {}
            for here, chance in losses.items():
                for loss, share in event.losses():
                    sums[here + loss] = sums.get(here + loss, 0.0) + chance * share
            losses = sums
    return rest, tuple(sorted(losses.items()))


def total_eps(entries: Sequence[LedgerEntry]) -> float:
    """Summed eps of the randomised answers."""
    return math.fsum(e.event.eps * e.steps for e in entries if isinstance(e.event, RandomizedResponseEvent))


def delta_beside(rest: Sequence[LedgerEntry], losses: Losses, eps: float, delta_of: Profile) -> float:
    """delta at ``eps`` of the Gaussian ``rest`` together with the answers.

    Args:
        rest: Gaussian entries; may be empty.
        losses: From :func:`without_responses`.
        eps: >= 0.
        delta_of: The profile of Gaussian entries at eps >= 0, an upper bound in both directions.
    """
    return min(1.0, math.fsum(chance * _extended(rest, eps - loss, delta_of) for loss, chance in losses))


def epsilon_beside(
    rest: Sequence[LedgerEntry], losses: Losses, delta: float, delta_of: Profile, epsilon_of: Profile
) -> float:
    """Smallest eps at ``delta``, rounded up: between 0 and the sum of both parts' eps."""
    low, high = 0.0, epsilon_of(rest, delta) + max(loss for loss, _ in losses)
    if not math.isfinite(high):
        return math.inf
    if delta_beside(rest, losses, 0.0, delta_of) <= delta:
        return 0.0
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if delta_beside(rest, losses, middle, delta_of) > delta else (low, middle)
    return high


def _extended(rest: Sequence[LedgerEntry], eps: float, delta_of: Profile) -> float:
    """The profile at any real eps: below 0 by the complement, 1 - e^eps (1 - delta(-eps)) in the other direction."""
    if eps >= 0.0:
        return delta_of(rest, eps)
    return -math.expm1(eps) + math.exp(eps) * delta_of(rest, -eps)

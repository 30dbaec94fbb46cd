"""From a budget to settings: the least noise, or the most steps, that keep an eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_dp.accounting.accountants import AccountantName, check_delta, failure, get_accountant
from lightning_dp.accounting.events import RELATION, GaussianEvent, Relation, Sampling
from lightning_dp.accounting.gaussian import gaussian_mu
from lightning_dp.accounting.ledger import LedgerEntry, merge_entries
from lightning_dp.accounting.responses import without_responses
from lightning_dp.accounting.risk.reconstruction import Effort
from lightning_dp.accounting.targets import EpsilonTarget, Target
from lightning_dp.errors import PrivacyConfigError

__all__ = (
    "EquivalentBudget",
    "affordable_prefix",
    "affordable_steps",
    "affordable_within",
    "calibrate_noise_multiplier",
    "calibrate_to",
    "eps_within",
)

_LEAST, _MOST = math.log(1e-8), math.log(1e8)
#: Wanted closeness in log eps; the contract is 1 %.
_CLOSE = 0.004


def calibrate_noise_multiplier(
    *,
    eps: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: AccountantName = "pld",
    sampling: Sampling | Literal["none"] = "poisson",
    tail: float = 0.0,
    bins: int = 1,
    relation: Relation = RELATION,
    spent: Sequence[LedgerEntry] = (),
    factors: Sequence[tuple[float, int]] | None = None,
) -> float:
    """Smallest noise multiplier for which ``steps`` more steps stay within (eps, delta).

    The guarantee: the accountant's eps of ``spent`` and the new steps together never exceeds ``eps``, and is
    at least 0.99 ``eps``. The search is bracketed by closed forms, narrowed on a coarse grid and finished by
    a few full evaluations.

    Args:
        eps: Budget, > 0, finite.
        delta: In (0, 1).
        sample_rate: Poisson rate q in (0, 1]; 1 for passes, shuffled or balls-in-bins.
        steps: Compositions to come, >= 1: steps, or passes.
        accountant: ``"pld"``, ``"rdp"`` or ``"prv"``.
        sampling: ``"poisson"``, ``"truncated_poisson"``, ``"balls_in_bins"`` or ``"shuffle"``; ``"none"`` for releases of
            every unit.
        tail: Chance per step that a draw is cut, for ``"truncated_poisson"``.
        bins: Steps of a pass, for ``"balls_in_bins"``.
        relation: The neighbouring relation of the new events, and of ``spent``.
        spent: What the ledger holds already; the new noise is for what is left.
        factors: Where the noise follows a schedule: ``(factor, steps)`` pairs that make up ``steps``; the noise multiplier of
            those steps is the factor times the result. The accountant composes all of them.

    Returns:
        The noise multiplier.

    Raises:
        PrivacyConfigError: If an argument is out of range, if ``spent`` alone exhausts the budget, or if no
            noise at all would be needed.
    """
    target = EpsilonTarget(eps, delta, accountant)
    if accountant == "pld" and sample_rate == 1.0 and factors is None and tail == 0.0 and bins == 1 and not spent:
        return math.sqrt(steps) / gaussian_mu(eps, delta) * (1.0 + 1e-12)  # the closed form, and rounding
    return calibrate_to(
        target,
        sample_rate=sample_rate,
        steps=steps,
        sampling=sampling,
        tail=tail,
        bins=bins,
        relation=relation,
        spent=spent,
        factors=factors,
    )


def calibrate_to(
    target: Target,
    *,
    sample_rate: float,
    steps: int,
    sampling: Sampling | Literal["none"] = "poisson",
    tail: float = 0.0,
    bins: int = 1,
    relation: Relation = RELATION,
    spent: Sequence[LedgerEntry] = (),
    factors: Sequence[tuple[float, int]] | None = None,
) -> float:
    """Smallest noise multiplier for which ``steps`` more steps keep to a target: an eps, or a limit on an attack.

    The guarantee: what the target limits, as measured on ``spent`` and the new steps together, never exceeds the limit, and is
    at least 0.99 of it where it moves smoothly with the noise. Arguments as for :func:`calibrate_noise_multiplier`.

    Raises:
        PrivacyConfigError: If an argument is out of range, if ``spent`` alone exhausts the target, or if no noise at all
            would be needed.
    """
    planned = LedgerEntry(GaussianEvent(1.0, sample_rate, sampling, tail, relation, bins), steps)
    shape = ((1.0, steps),) if factors is None else tuple(factors)
    if sum(length for _, length in shape) != steps:
        raise PrivacyConfigError(f"the factors {shape} do not make up the {steps} steps to calibrate for.")
    if target.measure(spent) >= target.limit:
        raise PrivacyConfigError(
            f"{target.reading(spent)} is spent already and {target} is asked for: raise the limit, or start from an untrained "
            "model with an empty ledger."
        )

    if (lost := failure((*without_responses(spent)[0], planned))) >= target.slack:
        raise PrivacyConfigError(
            f"the chance that one of {steps} batches has to be cut, {lost:.3g}, is not below {target.slack:.3g}, what {target} "
            "leaves for it: no noise makes up for that. Raise max_batch_size."
        )

    def entries(log_sigma: float) -> tuple[LedgerEntry, ...]:
        sigma = math.exp(log_sigma)
        new = [LedgerEntry(GaussianEvent(sigma * f, sample_rate, sampling, tail, relation, bins), k) for f, k in shape]
        return merge_entries((*spent, *new))

    def measured(effort: Effort) -> Callable[[float], float]:
        return lambda log_sigma: target.measure(entries(log_sigma), effort)

    # What is spent may exceed the limit by a looser bound and not by the exact one, so a quick search may find nothing.
    start, slope = _solve(measured("closed"), target.limit, 0.0, 1.0, 0.03), 1.0
    if math.isfinite(start):
        slope = _slope(measured("closed"), start)
    coarse = _solve(measured("coarse"), target.limit, start if math.isfinite(start) else 0.0, slope, 0.01)
    found = [point for point in (coarse, start, 0.0) if math.isfinite(point)]
    log_sigma = _solve(measured("full"), target.limit, found[0], slope, _CLOSE)
    if log_sigma <= _LEAST:
        # Only where the target allows for the chance of being drawn at all: publishing whole samples would satisfy the
        # formula.
        raise PrivacyConfigError(
            f"{target} needs no noise for sample_rate = {sample_rate:g} and {steps} steps, because a unit is so seldom drawn: "
            "use a smaller delta (1 / (10 n) for n units is usual), or a stricter limit."
        )
    if log_sigma > _MOST:
        raise PrivacyConfigError(
            f"no noise_multiplier up to 1e8 keeps {target}: raise the limit or delta, or lower steps."
        )
    return math.exp(log_sigma)


@dataclass(frozen=True)
class EquivalentBudget:
    """The noise that keeps a target, and the eps that goes with it.

    Attributes:
        noise_multiplier: noise standard deviation over sensitivity.
        eps: upper bound on eps at ``delta`` of the planned steps with that noise.
        delta: the delta asked for.
    """

    noise_multiplier: float
    eps: float
    delta: float


def eps_within(
    target: Target,
    *,
    delta: float,
    sample_rate: float,
    steps: int,
    sampling: Sampling = "poisson",
    bins: int = 1,
    accountant: AccountantName = "pld",
) -> EquivalentBudget:
    """Which noise, and which eps at ``delta``, keep a target in a training of ``steps`` compositions at ``sample_rate``.

    The answer belongs to these steps and this rate alone: another training with the same eps may have another risk.

    Raises:
        PrivacyConfigError: As :func:`calibrate_to`; or if ``delta`` is not in (0, 1).
    """
    exact = get_accountant(accountant)
    check_delta(delta)
    sigma = calibrate_to(target, sample_rate=sample_rate, steps=steps, sampling=sampling, bins=bins)
    entries = (LedgerEntry(GaussianEvent(sigma, sample_rate, sampling, bins=bins), steps),)
    return EquivalentBudget(sigma, exact.epsilon(entries, delta), delta)


def _slope(epsilon: Callable[[float], float], log_sigma: float) -> float:
    """-d log eps / d log sigma, between 0.5 and 8."""
    here, there = epsilon(log_sigma), epsilon(log_sigma + 0.02)
    if not 0.0 < there < here < math.inf:
        return 1.0
    return min(max(math.log(here / there) / 0.02, 0.5), 8.0)


def _solve(epsilon: Callable[[float], float], target: float, start: float, slope_guess: float, close: float) -> float:
    """A log sigma whose eps is at most ``target`` and, within ``close`` in log eps, no less.

    ``epsilon`` falls with its argument. The result is always a point at which it was evaluated and found
    within the target, however the search ends; infinity if there is none below the upper limit.
    """

    def excess(log_sigma: float) -> float:
        value = epsilon(log_sigma)
        ratio = value / target
        return 50.0 if not ratio < 1e20 else math.log(max(ratio, 1e-20))

    aim = -0.4 * close  # strictly inside, so that one secant step usually ends the search
    point, step = start, 0.0
    private: tuple[float, float] | None = None
    leaking: tuple[float, float] | None = None
    for _ in range(60):
        value = excess(point)
        if value <= 0.0:
            private = (point, value)
            if value >= -close:
                break
        else:
            leaking = (point, value)
        if private is not None and leaking is not None:
            low, high = leaking[0], private[0]
            if high - low <= 1e-10:
                break
            slope = (private[1] - leaking[1]) / (high - low)
            point = low + (aim - leaking[1]) / slope if slope < 0.0 and abs(private[1] - leaking[1]) < 20.0 else low
            # Keep off the ends: a curve bends, and a bracket must shrink.
            margin = (0.02 if abs(private[1] - leaking[1]) < 0.2 else 0.1) * (high - low)
            if not low + margin < point < high - margin:
                point = 0.5 * (low + high) if point <= low else min(max(point, low + margin), high - margin)
        else:
            step = math.copysign(max(2.0 * abs(step), min(abs(value - aim) / slope_guess, 3.0)), value)
            at_end = (value <= 0.0 and point <= _LEAST) or (value > 0.0 and point >= _MOST)
            if at_end:
                break
            point = min(max(point + step, _LEAST), _MOST)
    return math.inf if private is None else private[0]


def affordable_steps(
    *,
    eps: float,
    delta: float,
    event: GaussianEvent,
    spent: Sequence[LedgerEntry] = (),
    accountant: AccountantName = "pld",
    limit: int,
) -> int:
    """Largest k <= ``limit`` for which ``spent`` and k steps of ``event`` stay within budget; 0 if none.

    Raises:
        PrivacyConfigError: If an argument is out of range.
    """
    return affordable_prefix(
        eps=eps,
        delta=delta,
        plan=lambda k: (LedgerEntry(event, k),),
        spent=spent,
        accountant=accountant,
        limit=limit,
    )


def affordable_prefix(
    *,
    eps: float,
    delta: float,
    plan: Callable[[int], Sequence[LedgerEntry]],
    spent: Sequence[LedgerEntry] = (),
    accountant: AccountantName = "pld",
    limit: int,
) -> int:
    """Largest k <= ``limit`` for which ``spent`` and the first k steps of a plan stay within budget; 0 if none.

    Args:
        eps: Budget, > 0, finite.
        delta: In (0, 1).
        plan: What the first k >= 1 steps charge. A longer prefix contains the shorter.
        spent: What the ledger holds already.
        accountant: ``"pld"``, ``"rdp"`` or ``"prv"``.
        limit: Number of planned steps.

    Raises:
        PrivacyConfigError: If an argument is out of range.
    """
    return affordable_within(EpsilonTarget(eps, delta, accountant), plan=plan, spent=spent, limit=limit)


def affordable_within(
    target: Target, *, plan: Callable[[int], Sequence[LedgerEntry]], spent: Sequence[LedgerEntry] = (), limit: int
) -> int:
    """The same for any target: the largest k <= ``limit`` whose steps and ``spent`` keep to it; 0 if none.

    Raises:
        PrivacyConfigError: If ``limit`` is negative.
    """
    if limit < 0:
        raise PrivacyConfigError(f"limit must be >= 0, got {limit}: it is the number of planned steps.")
    most = target.limit

    def measured(k: int) -> float:
        return target.measure(merge_entries((*spent, *plan(k))))

    if limit == 0 or target.measure(spent) > most:
        return 0
    high_value = measured(limit)
    if high_value <= most:
        return limit
    # low always keeps the budget and high never does.
    low, high, low_value = 0, limit, 0.0
    turn = 0
    while high - low > 1:
        # Eps grows between the root of k and k itself: interpolate in log-log, reach a little past the guess
        # so that the other end comes close as well, and halve now and then.
        middle = (low + high) // 2
        if turn % 4 != 3 and 0.0 < low_value < high_value < math.inf:
            power = math.log(most / low_value) / math.log(high_value / low_value)
            middle = round(low * (high / low) ** power)
            middle += (middle - low) // 4 + 1 if middle - low < high - middle else -((high - middle) // 4 + 1)
        elif low == 0 and 0.0 < high_value < math.inf:
            middle = round(high * (most / high_value) ** 1.5)
        middle = min(max(middle, low + 1), high - 1)
        value = measured(middle)
        if value <= most:
            low, low_value = middle, value
        else:
            high, high_value = middle, value
        turn += 1
    return low

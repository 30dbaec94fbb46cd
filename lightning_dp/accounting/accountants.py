"""From a ledger to numbers: accountants turn entries into eps at delta, and into delta at eps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from typing_extensions import override

from lightning_dp.accounting import pld
from lightning_dp.accounting.allocation import LEAST_SIGMA, BallsInBins
from lightning_dp.accounting.events import GaussianEvent
from lightning_dp.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_power
from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps, merge_entries, relation_of
from lightning_dp.accounting.participation import participation_delta, participation_epsilon, participation_powers
from lightning_dp.accounting.profile import Profile, SampledGaussian
from lightning_dp.accounting.renyi import rdp_delta, rdp_epsilon, rdp_of_entries, rdp_power
from lightning_dp.accounting.responses import delta_beside, epsilon_beside, without_responses
from lightning_dp.errors import PrivacyConfigError

__all__ = (
    "Accountant",
    "AccountantName",
    "ClosedFormAccountant",
    "ComposingAccountant",
    "PLDAccountant",
    "RDPAccountant",
    "get_accountant",
)

AccountantName = Literal["pld", "rdp", "prv"]

#: (noise multiplier, rate, steps)
_Steps = tuple[float, float, int]
#: Below this, 1 / sigma^2 overflows; eps is reported as infinite, which is an upper bound.
_NO_NOISE = 1e-100


class Accountant(Protocol):
    """Turns ledger entries into a guarantee under the one neighbouring relation that they have.

    An empty ledger has spent nothing (0.0); an entry without noise has spent everything (eps inf, delta 1).
    """

    @property
    def name(self) -> str:
        """The name :func:`get_accountant` knows it by."""
        ...

    def epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        """Upper bound on the smallest eps at ``delta``."""
        ...

    def delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        """Upper bound on the smallest delta at ``eps``."""
        ...


def check_delta(delta: float) -> float:
    """Refuse a delta outside (0, 1)."""
    if not 0.0 < float(delta) < 1.0:
        raise PrivacyConfigError(f"delta must lie in (0, 1), got {delta}: 1 / (10 n) is usual for n units.")
    return float(delta)


def check_eps(eps: float, *, zero: bool = False) -> float:
    """Refuse an eps that is not a positive finite number (or, if asked, zero)."""
    if not (math.isfinite(eps) and (eps > 0.0 or (zero and eps == 0.0))):
        raise PrivacyConfigError(f"eps must be a finite number {'>=' if zero else '>'} 0, got {eps}.")
    return float(eps)


def without_noise(entries: Sequence[LedgerEntry]) -> bool:
    """Whether one step had no noise (none to speak of): nothing composed with it can restore privacy."""
    return any(event.noise_multiplier < _NO_NOISE for event, _ in gaussian_steps(entries))


def failure(entries: Sequence[LedgerEntry]) -> float:
    """Chance that some step of the ledger was not the mechanism that its event names; at most 1.

    Cut draws (truncated Poisson sampling) have one. With it, a composition that is (eps, delta)-private where no step
    fails is (eps, delta + failure)-private, by the joint convexity of hockey-stick divergences; the argument is in
    :class:`~lightning_dp.sampling.TruncatedPoissonSampler`.
    """
    return min(1.0, math.fsum(steps * event.tail for event, steps in gaussian_steps(entries)))


class ComposingAccountant(ABC):
    """What all accountants do alike: demand one relation, and compose randomised labels with the Gaussian rest."""

    def epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        """See :meth:`Accountant.epsilon`."""
        check_delta(delta)
        relation_of(entries)
        rest, losses = without_responses(entries)
        if not losses:
            return self.gaussian_epsilon(rest, delta)
        return epsilon_beside(rest, losses, delta, self.gaussian_delta, self.gaussian_epsilon)

    def delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        """See :meth:`Accountant.delta`."""
        check_eps(eps, zero=True)
        relation_of(entries)
        rest, losses = without_responses(entries)
        if not losses:
            return self.gaussian_delta(rest, eps)
        return delta_beside(rest, losses, eps, self.gaussian_delta)

    @abstractmethod
    def gaussian_epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        """:meth:`epsilon` of Gaussian entries, at a ``delta`` in (0, 1)."""

    @abstractmethod
    def gaussian_delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        """:meth:`delta` of Gaussian entries, at a finite ``eps`` >= 0."""


class RDPAccountant(ComposingAccountant):
    """Renyi accountant: fast, and loose by some 10 to 25 % in eps. An upper bound."""

    name = "rdp"

    @override
    def gaussian_epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        if without_noise(entries):
            return math.inf
        usable = delta - failure(entries)
        if usable <= 0.0:
            return math.inf
        return rdp_epsilon(rdp_of_entries(entries), usable) if entries else 0.0

    @override
    def gaussian_delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        if without_noise(entries):
            return 1.0
        return min(1.0, rdp_delta(rdp_of_entries(entries), eps) + failure(entries)) if entries else 0.0


class PLDAccountant(ComposingAccountant):
    """Privacy loss distributions: tight (about 0.1 % in eps), the default. An upper bound.

    Unsubsampled entries alone are one Gaussian mechanism of index sqrt(sum steps / sigma^2), whose closed
    form is used. Otherwise the least of four upper bounds counts: the loss distribution (absent where its
    grid would be too large), the Renyi bound, the bound by participation counts, and the Gaussian without
    amplification. The last three are closed forms, so that an answer always comes, in bounded time and
    memory.

    Args:
        coarsening: Use grids 2^coarsening times wider: quicker and looser, still an upper bound.
    """

    name = "pld"

    def __init__(self, coarsening: int = 0) -> None:
        self._coarsening = coarsening

    @override
    def gaussian_epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        if not entries:
            return 0.0
        if without_noise(entries):
            return math.inf
        bound = closed_form_epsilon(entries, delta)
        if bound == 0.0 or not is_sampled(entries):
            return bound
        composition = self.composition(entries)
        return bound if composition is None else min(bound, composition.epsilon(delta - failure(entries)))

    @override
    def gaussian_delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        if not entries:
            return 0.0
        if without_noise(entries):
            return 1.0
        bound = closed_form_delta(entries, eps)
        if not is_sampled(entries):
            return bound
        composition = self.composition(entries)
        return bound if composition is None else min(bound, composition.delta(eps) + failure(entries))

    def composition(
        self, entries: Sequence[LedgerEntry], profiles: tuple[Profile, Profile] | None = None
    ) -> pld.Composition | None:
        """The composed loss distributions behind the numbers; None where their grid would be too large.

        Args:
            entries: Ledger entries with noise.
            profiles: Divergences of a sampled step that are no guarantee; see
                :class:`~lightning_dp.accounting.profile.SampledGaussian`.
        """
        # Other profiles than a guarantee's are of sampled steps: to them a pass is the one step that holds the unit.
        passes = {} if profiles is not None else _passes(entries)
        rest = [entry for entry in entries if entry.event not in passes]
        mu, sampled = _split(rest)
        # Counting no more noise than 1e7 is a bound, and keeps losses apart from rounding.
        steps = [(min(1.0 / mu, 1e7), 1.0, 1)] if mu > 0.0 else []
        steps += [(min(sigma, 1e7), rate, times) for sigma, rate, times in sampled]
        given = () if profiles is None else (profiles,)
        parts: list[pld.Part] = [(SampledGaussian(sigma, rate, *given), times) for sigma, rate, times in steps]
        parts += [(BallsInBins(sigma, bins), times) for (sigma, bins), times in sorted(_by_kind(passes).items())]
        return pld.compose(tuple(parts), self._coarsening)


def is_sampled(entries: Sequence[LedgerEntry]) -> bool:
    """Whether any entry claims amplification; without one the Gaussian closed form is exact."""
    return any(event.sample_rate < 1.0 or event.bins > 1 for event, _ in gaussian_steps(entries))


class ClosedFormAccountant(ComposingAccountant):
    """The least of the bounds that need no grid: exact without amplification, quick and always there."""

    name = "closed_form"

    @override
    def gaussian_epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        return closed_form_epsilon(entries, delta) if entries else 0.0

    @override
    def gaussian_delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        return closed_form_delta(entries, eps) if entries else 0.0


def closed_form_epsilon(entries: Sequence[LedgerEntry], delta: float) -> float:
    """Least of the bounds that need no grid, of Gaussian entries; exact without amplification, and always there."""
    if without_noise(entries):
        return math.inf
    delta = delta - failure(entries)
    if delta <= 0.0:
        return math.inf
    mu, sampled = _split(entries)
    if not sampled:
        return gaussian_epsilon(mu, delta)
    sigma, q, steps = _worst(sampled)
    return min(
        rdp_epsilon(rdp_of_entries(entries), delta),
        gaussian_epsilon(_unamplified(mu, sampled), delta),
        participation_epsilon(delta, sigma=sigma, q=q, steps=steps, mu=mu),
    )


def closed_form_delta(entries: Sequence[LedgerEntry], eps: float) -> float:
    """The same for delta at ``eps``."""
    if without_noise(entries):
        return 1.0
    mu, sampled = _split(entries)
    if not sampled:
        return min(1.0, float(gaussian_delta(mu, eps)) + failure(entries))
    sigma, q, steps = _worst(sampled)
    least = min(
        rdp_delta(rdp_of_entries(entries), eps),
        float(gaussian_delta(_unamplified(mu, sampled), eps)),
        participation_delta(eps, sigma=sigma, q=q, steps=steps, mu=mu),
    )
    return min(1.0, least + failure(entries))


def closed_form_powers(entries: Sequence[LedgerEntry], level: float) -> tuple[float, float]:
    """The same for the power of a test of size ``level`` in (0, 1): null hypothesis without the unit, and with it."""
    if without_noise(entries):
        return 1.0, 1.0
    mu, sampled = _split(entries)
    if sampled:
        sigma, q, steps = _worst(sampled)
        renyi = rdp_power(rdp_of_entries(entries), level)
        remove, add = (min(p, renyi) for p in participation_powers(level, sigma=sigma, q=q, steps=steps, mu=mu))
    else:
        remove = add = float(gaussian_power(mu, level))
    lost = failure(entries)
    return min(1.0, remove + lost), min(1.0, add + lost)


def full_index(entries: Sequence[LedgerEntry]) -> float:
    """Index sqrt(sum steps / sigma^2) of the entries at rate 1, as one Gaussian mechanism."""
    return _split(entries)[0]


def _passes(entries: Sequence[LedgerEntry]) -> dict[GaussianEvent, int]:
    """Passes over balls-in-bins batches whose amplification counts, and how many of each."""
    counts: dict[GaussianEvent, int] = {}
    for event, times in gaussian_steps(entries):
        if event.bins > 1 and event.noise_multiplier >= LEAST_SIGMA:
            counts[event] = counts.get(event, 0) + times
    return counts


def _by_kind(passes: dict[GaussianEvent, int]) -> dict[tuple[float, int], int]:
    return {(event.noise_multiplier, event.bins): times for event, times in passes.items()}


def _split(entries: Sequence[LedgerEntry]) -> tuple[float, tuple[_Steps, ...]]:
    """Index of everything without amplification, and the subsampled rest; only a rate below 1 amplifies here.

    A pass over balls-in-bins batches counts as the one step that holds the unit, a bound.
    """
    square = 0.0
    sampled: dict[tuple[float, float], int] = {}
    for event, steps in gaussian_steps(merge_entries(entries)):
        # Counting no more noise than 1e100 is a bound, and keeps 1 / sigma^2 from underflow.
        sigma, rate = min(event.noise_multiplier, 1e100), event.sample_rate
        if rate < 1.0:
            sampled[sigma, rate] = sampled.get((sigma, rate), 0) + steps
        else:
            square += steps / sigma / sigma
    # Sorted, because composition is commutative and the order of charges must not change a number.
    return math.sqrt(square), tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(sampled.items()))


def _unamplified(mu: float, sampled: Sequence[_Steps]) -> float:
    """Index of the same steps at rate 1, which dominate them: the divergence is convex in the mixture."""
    return math.sqrt(mu * mu + sum(steps / sigma / sigma for sigma, _, steps in sampled))


def _worst(sampled: Sequence[_Steps]) -> _Steps:
    """One event that dominates all: the least noise, the highest rate, every step."""
    return min(p[0] for p in sampled), max(p[1] for p in sampled), sum(p[2] for p in sampled)


def get_accountant(name: AccountantName) -> Accountant:
    """The accountant called ``name``.

    Raises:
        PrivacyConfigError: If there is none of that name.
    """
    if name == "pld":
        return PLDAccountant()
    if name == "rdp":
        return RDPAccountant()
    if name == "prv":
        from lightning_dp.accounting.prv import PRVAccountant

        return PRVAccountant()
    raise PrivacyConfigError(
        f"accountant must be one of {get_args(AccountantName)}, got {name!r}: 'pld' is the tight one."
    )

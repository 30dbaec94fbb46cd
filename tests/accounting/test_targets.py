"""Targets: what is calibrated to them stays within, and just within; bad ones are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dp.accounting import (
    EpsilonTarget,
    GaussianEvent,
    LedgerEntry,
    MembershipRisk,
    ReconstructionRisk,
    Target,
    TradeOffCurve,
    affordable_steps,
    affordable_within,
    calibrate_noise_multiplier,
    calibrate_to,
    eps_within,
    get_accountant,
    membership_bound,
    reconstruction_bound,
)
from lightning_dp.errors import PrivacyConfigError

TARGETS: list[Target] = [
    ReconstructionRisk(gamma=0.1, kappa=1e-3),
    ReconstructionRisk(gamma=0.5, kappa=0.4),
    MembershipRisk(advantage=0.2),
    MembershipRisk(tpr=0.01, fpr=1e-3),
    EpsilonTarget(3.0, 1e-5),
    EpsilonTarget(3.0, 1e-5, "rdp"),
]
SPENT = (LedgerEntry(GaussianEvent(3.0, 0.05), 50),)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("rate", "steps", "spent"), [(0.02, 300, ()), (1.0, 20, ()), (0.1, 60, SPENT)])
def test_calibrated_noise_just_keeps_the_target(
    target: Target, rate: float, steps: int, spent: tuple[LedgerEntry, ...]
) -> None:
    sigma = calibrate_to(target, sample_rate=rate, steps=steps, spent=spent)
    entries = [*spent, LedgerEntry(GaussianEvent(sigma, rate), steps)]
    assert target.within(entries)
    assert 0.98 * target.limit <= target.measure(entries) <= target.limit
    assert not target.within([*spent, LedgerEntry(GaussianEvent(0.9 * sigma, rate), steps)])


def test_the_calibrated_number_is_the_reported_one() -> None:
    """By the public functions alone, not by the target's own measure."""
    for gamma, kappa in ((0.1, 1e-3), (0.02, 1e-4)):
        sigma = calibrate_to(ReconstructionRisk(gamma, kappa), sample_rate=0.01, steps=500)
        bound = reconstruction_bound([LedgerEntry(GaussianEvent(sigma, 0.01), 500)], kappa)
        assert 0.98 * gamma <= bound.gamma <= gamma
    sigma = calibrate_to(MembershipRisk(advantage=0.1), sample_rate=0.01, steps=500)
    assert 0.098 <= TradeOffCurve([LedgerEntry(GaussianEvent(sigma, 0.01), 500)]).membership_advantage <= 0.1 + 1e-9
    sigma = calibrate_to(MembershipRisk(tpr=0.05, fpr=0.01), sample_rate=0.01, steps=500)
    tpr = membership_bound([LedgerEntry(GaussianEvent(sigma, 0.01), 500)], (0.01,)).tpr[0]
    assert 0.049 <= tpr <= 0.05


def test_full_steps_have_a_closed_form() -> None:
    """Phi^-1(0.1) - Phi^-1(1/13) = 1 / sigma: the corridor figure's 6.919203."""
    assert calibrate_to(ReconstructionRisk(0.1, 1 / 13), sample_rate=1.0, steps=1) == pytest.approx(6.919203, rel=0.01)
    assert calibrate_to(ReconstructionRisk(0.1, 1 / 13), sample_rate=1.0, steps=1) >= 6.919203


def test_eps_is_one_target_among_others() -> None:
    settings_ = {"sample_rate": 0.02, "steps": 200}
    target = EpsilonTarget(4.0, 1e-5)
    assert calibrate_noise_multiplier(eps=4.0, delta=1e-5, **settings_) == calibrate_to(target, **settings_)  # type: ignore[arg-type]
    event = GaussianEvent(1.0, 0.02)
    assert affordable_steps(eps=2.0, delta=1e-5, event=event, limit=10**5) == affordable_within(
        EpsilonTarget(2.0, 1e-5), plan=lambda k: (LedgerEntry(event, k),), limit=10**5
    )


@pytest.mark.parametrize("target", TARGETS[:4], ids=str)
def test_the_last_affordable_step(target: Target) -> None:
    event = GaussianEvent(1.0, 0.05)
    steps = affordable_within(target, plan=lambda k: (LedgerEntry(event, k),), limit=5000)
    assert 0 < steps < 5000
    assert target.within([LedgerEntry(event, steps)])
    assert not target.within([LedgerEntry(event, steps + 1)])
    assert affordable_within(target, plan=lambda k: (LedgerEntry(event, k),), limit=0) == 0
    spent = [LedgerEntry(event, steps + 1)]
    assert affordable_within(target, plan=lambda k: (LedgerEntry(event, k),), spent=spent, limit=10) == 0


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_contract_of_a_measure(target: Target) -> None:
    assert target.measure([]) == 0.0
    assert target.within([])
    assert not target.within([LedgerEntry(GaussianEvent(0.0, 0.01), 1)])
    entries = [LedgerEntry(GaussianEvent(1.0, 0.03), 40)]
    more = [*entries, LedgerEntry(GaussianEvent(2.0, 0.03), 40)]
    assert 0.0 < target.measure(entries) <= target.measure(more)
    for effort in ("closed", "coarse"):
        tight = EpsilonTarget(3.0, 1e-5) if isinstance(target, EpsilonTarget) else target  # the Renyi one is looser
        assert target.measure(entries, effort) * (1 + 1e-6) >= tight.measure(entries)  # type: ignore[arg-type]
    assert target.reading(entries).split(" = ")[0].split()[-1] in ("gamma", "advantage", "TPR", "eps")


def test_which_eps_keeps_a_risk() -> None:
    target = ReconstructionRisk(0.05, 1e-3)
    budget = eps_within(target, delta=1e-5, sample_rate=0.01, steps=1000)
    entries = [LedgerEntry(GaussianEvent(budget.noise_multiplier, 0.01), 1000)]
    assert target.within(entries)
    assert budget.eps == get_accountant("pld").epsilon(entries, 1e-5)
    looser = eps_within(ReconstructionRisk(0.5, 1e-3), delta=1e-5, sample_rate=0.01, steps=1000)
    assert looser.eps > budget.eps
    with pytest.raises(PrivacyConfigError, match="delta"):
        eps_within(target, delta=0.0, sample_rate=0.01, steps=1000)


@given(st.floats(0.02, 0.9), st.floats(1e-5, 0.01), st.floats(0.005, 1.0), st.integers(1, 200))
@settings(max_examples=6, deadline=None)
def test_every_reachable_target_is_kept(gamma: float, kappa: float, rate: float, steps: int) -> None:
    target = ReconstructionRisk(gamma, kappa)
    if 1 - (1 - rate) ** steps < 1.02 * gamma:
        return  # then hardly any noise is needed, or none
    sigma = calibrate_to(target, sample_rate=rate, steps=steps)
    assert target.within([LedgerEntry(GaussianEvent(sigma, rate), steps)])


def test_kappa_is_filled_in() -> None:
    target = ReconstructionRisk(0.1)
    assert str(target).endswith("kappa = 1/n")
    assert target.resolved(500) == ReconstructionRisk(0.1, 1 / 500)
    assert ReconstructionRisk(0.1, 0.01).resolved(500).kappa == 0.01
    assert EpsilonTarget(1.0).resolved(500).delta == 1 / 5000
    for unresolved in (target, EpsilonTarget(1.0)):
        with pytest.raises(PrivacyConfigError, match="resolved"):
            unresolved.measure([LedgerEntry(GaussianEvent(1.0, 0.1), 1)])
    with pytest.raises(PrivacyConfigError, match="not above kappa"):
        target.resolved(5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ReconstructionRisk(0.0, 0.1), "gamma"),
        (lambda: ReconstructionRisk(1.0, 0.1), "gamma"),
        (lambda: ReconstructionRisk(math.nan, 0.1), "gamma"),
        (lambda: ReconstructionRisk(True, 0.1), "gamma"),
        (lambda: ReconstructionRisk("0.5", 0.1), "gamma"),  # type: ignore[arg-type]
        (lambda: ReconstructionRisk(0.5, 0.0), "kappa"),
        (lambda: ReconstructionRisk(0.5, 0.5), "not above kappa"),
        (lambda: ReconstructionRisk(0.1, 0.5), "not above kappa"),
        (lambda: MembershipRisk(), "either advantage"),
        (lambda: MembershipRisk(advantage=0.1, tpr=0.1, fpr=0.01), "either advantage"),
        (lambda: MembershipRisk(tpr=0.1), "either advantage"),
        (lambda: MembershipRisk(fpr=0.1), "either advantage"),
        (lambda: MembershipRisk(advantage=1.0), "advantage"),
        (lambda: MembershipRisk(tpr=0.1, fpr=0.1), "not above fpr"),
        (lambda: EpsilonTarget(0.0), "eps"),
        (lambda: EpsilonTarget(1.0, 1.0), "delta"),
        (lambda: EpsilonTarget(1.0, 1e-5, "gdp"), "gdp"),  # type: ignore[arg-type]
    ],
)
def test_bad_targets_are_refused(make: object, named: str) -> None:
    with pytest.raises(PrivacyConfigError, match=named):
        make()  # type: ignore[operator]


def test_what_is_spent_may_exceed_the_limit_by_a_looser_bound() -> None:
    """The closed forms alone would find no noise at all; the exact bound leaves room."""
    for target in (ReconstructionRisk(0.4, 0.02), EpsilonTarget(3.0, 1e-5)):
        event = GaussianEvent(1.0, 0.05)
        most = affordable_within(target, plan=lambda k: (LedgerEntry(GaussianEvent(1.0, 0.05), k),), limit=5000)
        spent = (LedgerEntry(event, int(0.95 * most)),)
        assert target.measure(spent, "closed") > target.limit > target.measure(spent)
        sigma = calibrate_to(target, sample_rate=0.05, steps=100, spent=spent)
        assert (
            0.98 * target.limit
            <= target.measure([*spent, LedgerEntry(GaussianEvent(sigma, 0.05), 100)])
            <= target.limit
        )


def test_what_cannot_be_calibrated_is_refused() -> None:
    broken = (LedgerEntry(GaussianEvent(0.0, 0.01), 1),)
    target = ReconstructionRisk(0.1, 0.01)
    with pytest.raises(PrivacyConfigError, match=r"gamma = 1 at kappa = 0.01 is spent already"):
        calibrate_to(target, sample_rate=0.01, steps=10, spent=broken)
    with pytest.raises(PrivacyConfigError, match="needs no noise"):
        calibrate_to(ReconstructionRisk(0.5, 0.01), sample_rate=0.001, steps=10)
    with pytest.raises(PrivacyConfigError, match="Raise max_batch_size"):
        calibrate_to(target, sample_rate=0.01, steps=10, sampling="truncated_poisson", tail=0.01)

"""Cut draws: the tail is added to delta by every accountant, and a mechanism computed exactly needs no more than that."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats

from lightning_dp.accounting import (
    EpsilonMeter,
    GaussianEvent,
    LedgerEntry,
    PLDAccountant,
    PrivacyLedger,
    TradeOffCurve,
    affordable_steps,
    calibrate_noise_multiplier,
    get_accountant,
    privacy_spent,
)
from lightning_dp.errors import PrivacyConfigError, PrivacyError

ACCOUNTANTS: list[Any] = ["pld", "rdp", "prv"]
TAIL = 1e-8


def cut(sigma: float = 1.0, rate: float = 0.1, steps: int = 100, tail: float = TAIL) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, rate, "truncated_poisson", tail), steps)]


def whole(sigma: float = 1.0, rate: float = 0.1, steps: int = 100) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, rate), steps)]


# --- against the mechanism itself -------------------------------------------------------------------------------------
def outcomes(values: list[float], q: float, most: int) -> dict[float, float]:
    """The law of the sum over a cut draw: enumerated over all draws and all uniform cuts."""
    law: dict[float, float] = {}
    for draw in itertools.product((0, 1), repeat=len(values)):
        chance = math.prod(q if d else 1 - q for d in draw)
        drawn = [i for i, d in enumerate(draw) if d]
        kept = list(itertools.combinations(drawn, min(most, len(drawn))))
        for subset in kept:
            total = sum(values[i] for i in subset)
            law[total] = law.get(total, 0.0) + chance / len(kept)
    return law


def density(law: dict[float, float], x: np.ndarray, sigma: float) -> np.ndarray:
    return sum(chance * stats.norm.pdf(x, mean, sigma) for mean, chance in law.items())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("sigma", [0.4, 1.0])
@pytest.mark.parametrize(
    ("n", "q", "most"), [(1, 0.3, 1), (2, 0.4, 2), (3, 0.2, 2), (4, 0.25, 2), (4, 0.25, 3), (2, 0.95, 2)]
)
def test_the_exact_mechanism_needs_no_more_delta(n: int, q: float, most: int, sigma: float, steps: int) -> None:
    """n units that pull to the left, and one more to the right, whose presence pushes one of the others out of a full
    draw: the divergence of the two laws by quadrature, in both directions, is at most Poisson's and the tail's."""
    x = np.arange(-most - 9 * sigma, 1 + 9 * sigma, sigma / 40)
    without = density(outcomes([-1.0] * n, q, most), x, sigma)
    with_it = density(outcomes([-1.0] * n + [1.0], q, most), x, sigma)
    cell = x[1] - x[0]
    if steps == 2:
        without, with_it, cell = (np.outer(p, p) if i < 2 else p * p for i, p in enumerate((without, with_it, cell)))
    tail = float(stats.binom.sf(most - 1, n, q))
    uncut_suffices = True
    for eps in (0.0, 0.3, 1.0, 2.0, 4.0):
        exact = max(
            float(np.maximum(p - math.exp(eps) * r, 0).sum() * cell)
            for p, r in ((with_it, without), (without, with_it))
        )
        allowed = PLDAccountant().delta(cut(sigma, q, steps, tail), eps)
        assert exact <= allowed + 1e-6
        uncut_suffices &= exact <= PLDAccountant().delta(whole(sigma, q, steps), eps) + 1e-6
    if q > 0.9 and sigma == 1.0:
        assert not uncut_suffices  # Poisson's own delta would be a lie


@pytest.mark.parametrize(("n", "b", "most"), [(10_000, 100, 170), (10_000, 100, 190)])
def test_against_the_finer_analysis_of_another_library(n: int, b: int, most: int) -> None:
    """dp-accounting follows each possible cut (arXiv 2508.15089); a bound by the tail is above it, and close."""
    sigma, steps, delta = 1.0, 200, 1e-5
    theirs = pld.from_truncated_subsampled_gaussian_mechanism(n, b / n, most, sigma, value_discretization_interval=1e-3)
    eps = theirs.self_compose(steps).get_epsilon_for_delta(delta)
    tail = float(stats.binom.sf(most - 1, n, b / n))
    ours = get_accountant("pld").epsilon(cut(sigma, b / n, steps, tail), delta)
    assert 0.98 * eps <= ours <= 1.02 * eps


# --- every number has it ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ACCOUNTANTS)
def test_the_tail_of_every_step_is_taken_off_delta(name: Any) -> None:
    accountant = get_accountant(name)
    delta = 1e-5
    assert accountant.epsilon(cut(), delta) == pytest.approx(accountant.epsilon(whole(), delta - 100 * TAIL), rel=1e-9)
    assert accountant.epsilon(cut(), delta) > accountant.epsilon(whole(), delta)
    assert accountant.delta(cut(), 2.0) == pytest.approx(accountant.delta(whole(), 2.0) + 100 * TAIL, rel=1e-9)


@pytest.mark.parametrize("name", ACCOUNTANTS)
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_nothing_is_left_where_the_tails_use_delta_up(name: Any, rate: float) -> None:
    accountant = get_accountant(name)
    assert accountant.epsilon(cut(rate=rate), 100 * TAIL) == math.inf
    assert accountant.epsilon(cut(rate=rate, tail=1.0), 0.9) == math.inf
    assert accountant.delta(cut(rate=rate, tail=0.5), 50.0) == 1.0


def test_tails_of_several_entries_add_up() -> None:
    mixed = cut(steps=60) + cut(2.0, steps=40, tail=3 * TAIL) + whole(3.0, steps=5)
    plain = whole(steps=60) + whole(2.0, steps=40) + whole(3.0, steps=5)
    lost = 60 * TAIL + 40 * 3 * TAIL
    assert get_accountant("pld").epsilon(mixed, 1e-5) == pytest.approx(
        get_accountant("pld").epsilon(plain, 1e-5 - lost)
    )


def test_the_running_eps_has_it() -> None:
    meter = EpsilonMeter(1e-5)
    for steps in (1, 50, 999):
        exact = get_accountant("pld").epsilon(cut(steps=steps), 1e-5)
        assert meter.epsilon(cut(steps=steps)) >= exact
    assert meter.epsilon(cut(steps=1000)) == math.inf
    primed = EpsilonMeter(1e-5)
    primed.prime(cut()[0].event, 100)
    assert primed.epsilon(cut()) == get_accountant("pld").epsilon(cut(), 1e-5)


def test_the_trade_off_curve_has_it() -> None:
    """An attack that sees through a cut draw wins with that chance more, and no more."""
    alpha = np.linspace(0, 1, 101)
    lost = 0.01
    plain, tailed = TradeOffCurve(whole()).beta(alpha), TradeOffCurve(cut(tail=lost / 100)).beta(alpha)
    assert np.all(tailed <= plain)
    assert tailed[0] == pytest.approx(1 - lost, abs=1e-6)
    assert np.all(
        TradeOffCurve(cut(rate=1.0, tail=lost / 100)).beta(alpha) <= TradeOffCurve(whole(rate=1.0)).beta(alpha)
    )
    assert np.all(TradeOffCurve(cut(tail=1.0)).beta(alpha) == 0.0)
    assert TradeOffCurve(cut(tail=lost / 100)).membership_advantage == pytest.approx(
        TradeOffCurve(whole()).membership_advantage + lost, abs=1e-3
    )


@pytest.mark.parametrize("name", ["pld", "rdp"])
def test_calibration_and_affordable_steps_keep_the_budget_with_it(name: Any) -> None:
    budget: dict[str, Any] = {"eps": 2.0, "delta": 1e-5, "accountant": name}
    sigma = calibrate_noise_multiplier(sample_rate=0.1, steps=100, sampling="truncated_poisson", tail=9e-8, **budget)
    accountant = get_accountant(name)
    assert 1.97 < accountant.epsilon(cut(sigma, tail=9e-8), 1e-5) <= 2.0
    assert sigma > calibrate_noise_multiplier(sample_rate=0.1, steps=100, **budget)
    steps = affordable_steps(event=cut(sigma, tail=9e-8)[0].event, limit=1000, **budget)
    assert 100 <= steps < 112  # at 112 the tails alone are delta
    with pytest.raises(PrivacyConfigError, match="Raise max_batch_size"):
        calibrate_noise_multiplier(sample_rate=0.1, steps=112, sampling="truncated_poisson", tail=9e-8, **budget)


def test_the_report_says_that_draws_are_cut() -> None:
    spent = privacy_spent(cut(), 1e-5)
    assert spent.sampling == "truncated_poisson"
    assert "Poisson sampling cut at a maximum, q = 0.1" in str(spent)


# --- events and ledgers -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [(1.0, 0.1, "poisson", 0.1), (1.0, 1.0, "shuffle", 0.1), (1.0, 0.1, "truncated_poisson", -0.1),
     (1.0, 0.1, "truncated_poisson", 1.1), (1.0, 0.1, "truncated_poisson", math.nan)],
)  # fmt: skip
def test_impossible_tails_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PrivacyConfigError, match="tail"):
        GaussianEvent(*arguments)


def test_a_ledger_keeps_the_tail_and_refuses_a_cut_draw_without_one() -> None:
    ledger = PrivacyLedger()
    ledger.charge(cut()[0].event, 3)
    ledger.charge(whole()[0].event, 2)
    state = ledger.state_dict()
    (rows,) = state["segments"].values()
    assert rows == [[1.0, 0.1, "truncated_poisson", 3, TAIL], [1.0, 0.1, "poisson", 2]]
    other = PrivacyLedger()
    other.merge(state)
    assert other.entries == ledger.entries
    for bad in ([1.0, 0.1, "truncated_poisson", 3], [1.0, 0.1, "poisson", 3, TAIL], [1.0, 0.1, "poisson", 3, 0.0, 0.0]):
        with pytest.raises(PrivacyError, match="cannot be read"):
            other.merge({"version": 1, "segments": {ledger.segment: [bad]}})
    assert other.entries == ledger.entries

"""Noisy releases and randomised labels: the sheet's closed forms, and compositions by integration."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_dp.accounting import (
    EpsilonMeter,
    GaussianEvent,
    LedgerEntry,
    MembershipRisk,
    PrivacyLedger,
    RandomizedResponseEvent,
    SensitivityIndex,
    TradeOffCurve,
    calibrate_noise_multiplier,
    get_accountant,
    membership_bound,
    privacy_spent,
    reconstruction_bound,
    relaxed_risk,
    release_event,
)
from lightning_dp.errors import PrivacyConfigError, PrivacyError

REPLACE = "replace_one"


def release(sigma: float, steps: int = 1, relation: Any = REPLACE) -> LedgerEntry:
    return LedgerEntry(release_event(sigma, relation), steps)


def answer(eps: float, classes: int = 10, steps: int = 1, relation: Any = REPLACE) -> LedgerEntry:
    return LedgerEntry(RandomizedResponseEvent(eps, classes, relation), steps)


# --- releases ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sigma, steps, relation, eps",
    [
        (4.0, 1, "replace_one", 1.993091),
        (4.0, 4, "replace_one", 4.377178),
        (2.0, 1, "replace_one", 4.377178),
        (2.0, 1, "add_or_remove_one", 1.993091),
        (1.0, 4, "add_or_remove_one", 9.997256),
        (8.0, 1, "replace_one", 0.926342),
    ],
)
def test_the_table_of_closed_forms(sigma: float, steps: int, relation: Any, eps: float) -> None:
    """mu = 2 sqrt(K) / sigma when replacing, sqrt(K) / sigma when adding or removing; eps at delta = 1e-5."""
    spent = privacy_spent([release(sigma, steps, relation)], 1e-5)
    assert spent.eps == pytest.approx(eps, abs=2e-6)
    assert spent.relation == relation
    assert spent.steps == steps
    assert str(spent).count("no amplification") == 1


def test_the_attack_curve_of_a_release_is_the_gaussian_one() -> None:
    curve = privacy_spent([release(4.0)], 1e-5).trade_off()
    assert curve.tpr(1e-3) == pytest.approx(0.004796, abs=1e-6)
    assert curve.membership_advantage == pytest.approx(0.197413, abs=1e-6)


@pytest.mark.parametrize("eps, index", [(1.0, 3.730632), (3.0, 1.390593), (8.0, 0.600229)])
@pytest.mark.parametrize("steps", [1, 4])
def test_noise_for_a_target(eps: float, index: float, steps: int) -> None:
    """Table N2's inverse: noise over sensitivity, times sqrt(K)."""
    found = calibrate_noise_multiplier(
        eps=eps, delta=1e-5, sample_rate=1.0, steps=steps, sampling="none", relation="replace_one"
    )
    assert found == pytest.approx(index * math.sqrt(steps), rel=2e-6)
    event = GaussianEvent(found, sampling="none", relation="replace_one")
    assert get_accountant("pld").epsilon([LedgerEntry(event, steps)], 1e-5) <= eps


@pytest.mark.parametrize("spent", [[answer(1.0)], [release(6.0)]])
def test_noise_for_what_a_budget_has_left(spent: list[LedgerEntry]) -> None:
    found = calibrate_noise_multiplier(
        eps=3.0, delta=1e-5, sample_rate=1.0, steps=1, sampling="none", relation="replace_one", spent=spent
    )
    event = GaussianEvent(found, sampling="none", relation="replace_one")
    assert 0.99 * 3.0 <= get_accountant("pld").epsilon([*spent, LedgerEntry(event, 1)], 1e-5) <= 3.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"sample_rate": 0.5, "sampling": "none"},
        {"sampling": "poisson", "relation": "replace_one"},
        {"sample_rate": 0.5, "relation": "replace_one"},
        {"relation": "swap"},
    ],
)
def test_amplification_is_not_taken_for_a_release(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrivacyConfigError):
        GaussianEvent(1.0, **arguments)


@pytest.mark.parametrize("arguments", [(-1.0, 2), (math.inf, 2), (math.nan, 2), (1.0, 1), (1.0, True), (1.0, 2.0)])
def test_impossible_answers_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PrivacyConfigError):
        RandomizedResponseEvent(*arguments)


# --- one relation -----------------------------------------------------------------------------------------------------
MIXED = [release(4.0), LedgerEntry(GaussianEvent(1.0, 0.1), 5)]


def test_events_of_different_relations_are_not_added_up() -> None:
    ledger, other = PrivacyLedger(), PrivacyLedger()
    ledger.charge(MIXED[0].event)
    other.charge(MIXED[1].event)
    for act in (lambda: ledger.charge(MIXED[1].event), lambda: ledger.merge(other.state_dict())):
        with pytest.raises(PrivacyError, match="relation"):
            act()
        assert ledger.entries == (MIXED[0],)
    for name in ("pld", "rdp", "prv"):
        with pytest.raises(PrivacyError, match="relation"):
            get_accountant(name).epsilon(MIXED, 1e-5)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="relation"):
        privacy_spent(MIXED, 1e-5)


def test_a_release_beside_dp_sgd_composes_under_one_relation() -> None:
    """The two budgets together cost more than each, and no more than their sum."""
    sgd, seen = LedgerEntry(GaussianEvent(1.0, 0.01), 500), release(2.0, relation="add_or_remove_one")
    eps = get_accountant("pld").epsilon
    together = eps([sgd, seen], 1e-5)
    assert max(eps([sgd], 1e-5), eps([seen], 1e-5)) < together < eps([sgd], 5e-6) + eps([seen], 5e-6)


def test_a_saved_ledger_keeps_releases_and_answers() -> None:
    ledger, restored = PrivacyLedger(), PrivacyLedger()
    ledger.charge(release(4.0).event, 3)
    ledger.charge(answer(0.5, 7).event, 2)
    restored.merge(json.loads(json.dumps(ledger.state_dict())))
    assert restored.entries == ledger.entries == (release(4.0, 3), answer(0.5, 7, 2))


@pytest.mark.parametrize(
    "row", [["release", 1.0, "swap", 1], ["release", 1.0, 1], ["randomized_response", 1.0, 1, "replace_one", 1], []]
)
def test_a_malformed_row_is_refused(row: list[Any]) -> None:
    with pytest.raises(PrivacyError, match="cannot be read"):
        PrivacyLedger().merge({"version": 1, "segments": {"ab" * 16: [row]}})


# --- randomised labels ------------------------------------------------------------------------------------------------
def exact_delta(mu: float, answers: list[tuple[float, int]], eps: float) -> float:
    """sum over answers of the integral of max(0, P - e^eps Q) over a fine grid: true label 0 against 1."""
    x = np.linspace(-12.0, 12.0 + mu, 400_001)
    total = 0.0
    for outcome in itertools.product(*(range(k) for _, k in answers)):
        p, q = 1.0, 1.0
        for (e, k), y in zip(answers, outcome, strict=True):
            keep = math.exp(e) / (math.exp(e) + k - 1)
            p *= keep if y == 0 else (1 - keep) / (k - 1)
            q *= keep if y == 1 else (1 - keep) / (k - 1)
        gap = np.maximum(0.0, p * stats.norm.pdf(x, mu) - math.exp(eps) * q * stats.norm.pdf(x))
        total += float(gap.sum() * (x[1] - x[0]))
    return total


@pytest.mark.parametrize("answers", [[(1.0, 2)], [(1.0, 10)], [(0.3, 4), (1.2, 3)]])
@pytest.mark.parametrize("eps", [0.0, 0.5, 2.0, 4.0])
def test_answers_and_a_release_compose_exactly(answers: list[tuple[float, int]], eps: float) -> None:
    entries = [release(2.5), *(answer(e, k) for e, k in answers)]
    assert get_accountant("pld").delta(entries, eps) == pytest.approx(exact_delta(0.8, answers, eps), rel=1e-6)


@pytest.mark.parametrize("name", ["pld", "rdp"])
def test_eps_is_the_inverse_of_delta_and_at_most_the_sum(name: Any) -> None:
    accountant, entries = get_accountant(name), [release(4.0), answer(1.0)]
    eps = accountant.epsilon(entries, 1e-5)
    assert accountant.delta(entries, eps) <= 1e-5 < accountant.delta(entries, eps - 1e-6)
    assert accountant.epsilon(entries[:1], 1e-5) < eps < accountant.epsilon(entries[:1], 1e-5) + 1.0


def test_answers_alone_are_pure() -> None:
    """eps at delta = 0 is the answer's own: K-ary randomised response keeps with e^eps / (e^eps + K - 1)."""
    event, accountant = RandomizedResponseEvent(1.5, 5), get_accountant("pld")
    assert event.keep == pytest.approx(math.exp(1.5) / (math.exp(1.5) + 4), rel=1e-14)
    wrong = (1 - event.keep) / 4
    assert math.log(event.keep / wrong) == pytest.approx(1.5, rel=1e-14)
    assert math.fsum(chance for _, chance in event.losses()) == pytest.approx(1.0, rel=1e-14)
    assert accountant.delta([LedgerEntry(event, 1)], 1.5) == 0.0
    assert accountant.delta([LedgerEntry(event, 1)], 0.0) == pytest.approx(event.keep - wrong, rel=1e-12)
    assert accountant.epsilon([LedgerEntry(event, 1)], 1e-300) == pytest.approx(1.5, rel=1e-9)
    assert accountant.epsilon([LedgerEntry(event, 100)], 1e-5) == pytest.approx(150.0)


def test_a_uniform_label_is_no_better_than_another_one() -> None:
    """Adding or removing a record: the answer of one that is not there is uniform. Worse losses are accounted."""
    keep, k = RandomizedResponseEvent(1.0, 6).keep, 6
    law, uniform = [keep, *[(1 - keep) / (k - 1)] * (k - 1)], [1 / k] * k
    for eps in np.linspace(0.0, 1.0, 11):
        accounted = get_accountant("pld").delta([answer(1.0, k)], float(eps))
        for p, q in ((law, uniform), (uniform, law)):
            assert sum(max(0.0, a - math.exp(eps) * b) for a, b in zip(p, q, strict=True)) <= accounted + 1e-15


def test_the_attack_curve_covers_labels() -> None:
    """No test on (release, answer) does better: here the likelihood-ratio test, by integration at its thresholds."""
    curve = TradeOffCurve([release(2.5), answer(1.0, 3)])
    keep = RandomizedResponseEvent(1.0, 3).keep
    p, q = np.array([keep, (1 - keep) / 2, (1 - keep) / 2]), np.array([(1 - keep) / 2, keep, (1 - keep) / 2])
    for threshold in np.linspace(-3, 4, 15):
        cut = (threshold - np.log(p / q) + 0.32) / 0.8  # reject where 0.8 x - 0.32 + log(p / q) exceeds the threshold
        fpr, tpr = float((q * stats.norm.sf(cut)).sum()), float((p * stats.norm.sf(cut - 0.8)).sum())
        assert tpr <= curve.tpr(fpr) + 1e-9
        assert curve.tpr(fpr) <= tpr + 2e-3  # and it is no idle bound
    assert curve.membership_advantage > SensitivityIndex(0.8).advantage


def test_reconstruction_bounds_cover_labels() -> None:
    entries = [release(2.5), answer(1.0, 3)]
    bound, alone = reconstruction_bound(entries, 0.01), reconstruction_bound(entries[:1], 0.01)
    assert bound.gamma == pytest.approx(float(TradeOffCurve(entries).tpr(0.01)))
    assert alone.gamma < bound.gamma <= alone.gamma + bound.error + 1e-12
    assert relaxed_risk(entries, 0.01).gamma == bound.gamma
    assert membership_bound(entries).advantage == pytest.approx(TradeOffCurve(entries).membership_advantage, abs=1e-9)
    assert reconstruction_bound(entries[1:], 0.1).gamma <= 0.1 * math.e + 1e-9  # pure eps = 1
    assert MembershipRisk(advantage=0.9).within(entries)


def test_the_meter_counts_answers() -> None:
    entries = [LedgerEntry(GaussianEvent(1.0, 0.1), 10), answer(1.0, relation="add_or_remove_one")]
    assert EpsilonMeter(1e-5).epsilon(entries) >= get_accountant("pld").epsilon(entries, 1e-5)

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    affordable_steps,
    calibrate_noise_multiplier,
    get_accountant,
)
from lightning_dp.errors import PrivacyConfigError

SPENT = (LedgerEntry(GaussianEvent(1.0, 0.01), 1000), LedgerEntry(GaussianEvent(10.0), 5))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("eps", "sample_rate", "steps", "accountant", "spent"),
    [
        (8.0, 0.004, 10_000, "pld", ()),
        (8.0, 0.01, 1000, "pld", ()),
        (8.0, 0.0005, 100_000, "pld", ()),
        (1.0, 0.01, 1000, "pld", ()),
        (0.01, 0.004, 10_000, "pld", ()),
        (1e3, 0.004, 1000, "pld", ()),
        (1e6, 0.004, 10_000, "pld", ()),
        (1e9, 0.5, 10**6, "pld", ()),
        (1e9, 1.0, 1, "pld", ()),
        (0.01, 1.0, 10**6, "pld", ()),
        (5.0, 0.5, 1, "pld", ()),
        (8.0, 0.01, 1000, "pld", SPENT),
        (8.0, 0.01, 1000, "rdp", SPENT),
        (1e3, 0.004, 1000, "rdp", ()),
        (8.0, 0.01, 1000, "prv", ()),
    ],
)
def test_the_budget_is_met_and_never_exceeded(
    eps: float, sample_rate: float, steps: int, accountant: Any, spent: tuple[LedgerEntry, ...]
) -> None:
    sigma = calibrate_noise_multiplier(
        eps=eps, delta=1e-5, sample_rate=sample_rate, steps=steps, accountant=accountant, spent=spent
    )
    entries = [*spent, LedgerEntry(GaussianEvent(sigma, sample_rate), steps)]
    reached = get_accountant(accountant).epsilon(entries, 1e-5)
    assert 0.99 * eps <= reached <= eps


def test_known_noise() -> None:
    """The analytic Gaussian mechanism at (1, 1e-5); dp-accounting's own search at (8, 1e-5)."""
    gaussian = calibrate_noise_multiplier(eps=1.0, delta=1e-5, sample_rate=1.0, steps=1, sampling="shuffle")
    assert gaussian == pytest.approx(3.730632, abs=1e-6)  # exact without sampling
    sgd = calibrate_noise_multiplier(eps=8.0, delta=1e-5, sample_rate=0.004, steps=10_000)
    assert 0.6095 <= sgd <= 0.6095 * 1.01


GOOD: dict[str, Any] = {"eps": 8.0, "delta": 1e-5, "sample_rate": 0.01, "steps": 100}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"eps": math.inf}, "eps"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"sample_rate": math.nan}, "sample_rate"),
        ({"accountant": "gdp"}, "gdp"),
        ({"sampling": "shuffle"}, "sample_rate=1"),
        ({"spent": (LedgerEntry(GaussianEvent(0.3, 0.01), 1000),)}, "spent already"),
        ({"spent": (LedgerEntry(GaussianEvent(0.0, 0.01), 1),)}, "spent already"),
        ({"sample_rate": 1e-7, "steps": 10}, "smaller delta"),
    ],
)
def test_impossible_budgets_are_refused_by_name(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(PrivacyConfigError, match=named):
        calibrate_noise_multiplier(**{**GOOD, **changed})


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("event", "spent", "limit"),
    [
        (GaussianEvent(1.0, 0.01), (), 10**5),
        (GaussianEvent(2.0, 0.05), SPENT, 20_000),
        (GaussianEvent(9.0, 1.0, "shuffle"), (), 1000),
    ],
)
def test_the_last_affordable_step(event: GaussianEvent, spent: tuple[LedgerEntry, ...], limit: int) -> None:
    steps = affordable_steps(eps=3.0, delta=1e-5, event=event, spent=spent, limit=limit)
    assert 0 < steps < limit
    accountant = get_accountant("pld")
    assert accountant.epsilon([*spent, LedgerEntry(event, steps)], 1e-5) <= 3.0
    assert accountant.epsilon([*spent, LedgerEntry(event, steps + 1)], 1e-5) > 3.0


def test_every_count_of_a_small_plan() -> None:
    """Against trying all of them."""
    accountant, event = get_accountant("pld"), GaussianEvent(4.0)
    for eps in (0.5, 1.0, 2.0, 3.3):
        fitting = [k for k in range(1, 21) if accountant.epsilon([LedgerEntry(event, k)], 1e-5) <= eps]
        assert affordable_steps(eps=eps, delta=1e-5, event=event, limit=20) == len(fitting)


def test_what_cannot_be_afforded() -> None:
    overspent = (LedgerEntry(GaussianEvent(0.3, 0.01), 1000),)
    event = GaussianEvent(1.0, 0.01)
    assert affordable_steps(eps=3.0, delta=1e-5, event=event, spent=overspent, limit=100) == 0
    assert affordable_steps(eps=3.0, delta=1e-5, event=GaussianEvent(0.0, 0.01), limit=100) == 0
    assert affordable_steps(eps=3.0, delta=1e-5, event=GaussianEvent(0.5), limit=100) == 0
    assert affordable_steps(eps=3.0, delta=1e-5, event=event, limit=0) == 0
    assert affordable_steps(eps=3.0, delta=1e-5, event=event, limit=100) == 100
    with pytest.raises(PrivacyConfigError, match="limit"):
        affordable_steps(eps=3.0, delta=1e-5, event=event, limit=-1)

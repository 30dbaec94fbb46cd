"""Schedules: what they say, that they stretch as told, and that the accountants compose what they make of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lightning_dp.accounting import (
    CosineSchedule,
    EpsilonMeter,
    GaussianEvent,
    LedgerEntry,
    LinearSchedule,
    Schedule,
    StepSchedule,
    affordable_prefix,
    calibrate_noise_multiplier,
    get_accountant,
    pieces,
)
from lightning_dp.errors import PrivacyConfigError


def factors(schedule: Schedule, planned: int) -> list[float]:
    return [schedule.factor(step, planned) for step in range(planned)]


@pytest.mark.parametrize("schedule", [LinearSchedule(1.5, 0.5), CosineSchedule(1.5, 0.5)])
@pytest.mark.parametrize("planned", [1, 2, 5, 16, 17, 1000])
def test_a_stretched_schedule_goes_from_first_to_last_over_the_plan(schedule: Schedule, planned: int) -> None:
    found = factors(schedule, planned)
    assert found[0] == 1.5
    assert found[-1] == pytest.approx(0.5 if planned > 1 else 1.5)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == min(16, planned)
    lengths = [length for _, length in pieces(found)]
    assert max(lengths) - min(lengths) <= 1
    assert schedule.factor(10 * planned + 1, planned) == found[-1]


def test_the_middle_of_a_line_and_of_a_wave() -> None:
    line, wave = factors(LinearSchedule(0.5, 2.0), 1600), factors(CosineSchedule(0.5, 2.0), 1600)
    for stage in range(16):
        assert line[100 * stage] == pytest.approx(0.5 + 1.5 * stage / 15)
        assert wave[100 * stage] == pytest.approx(2.0 - 1.5 * (1 + math.cos(math.pi * stage / 15)) / 2)


def test_steps_of_its_own_do_not_depend_on_the_plan() -> None:
    schedule = LinearSchedule(1.0, 0.25, steps=4)
    for planned in (3, 100, math.inf):
        assert [schedule.factor(step, planned) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.25, 0.25]


def test_stages_by_step_count() -> None:
    schedule = StepSchedule(0.5, every=3)
    assert [schedule.factor(step, math.inf) for step in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert schedule.factor(10**9, math.inf) == 0.5**15
    assert str(schedule) == "times 0.5 every 3 steps"
    assert str(LinearSchedule(1, 0.5, 9)) == "linear from 1 to 0.5 over 9 steps"


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearSchedule(0.0, 1.0),
        lambda: LinearSchedule(1.0, math.nan),
        lambda: CosineSchedule(1.0, math.inf),
        lambda: CosineSchedule(True, 1.0),
        lambda: LinearSchedule(1.0, 0.5, steps=0),
        lambda: LinearSchedule(1.0, 0.5, steps=2.5),  # type: ignore[arg-type]
        lambda: StepSchedule(0.1, every=5),  # 1e-15 in the end
        lambda: StepSchedule(0.5, every=0),
        lambda: LinearSchedule(1.0, 0.5).factor(0, math.inf),
    ],
)
def test_what_bounds_nothing_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(PrivacyConfigError):
        make()


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("spent", [(), (LedgerEntry(GaussianEvent(2.0, 0.01), 300),)], ids=["fresh", "resumed"])
def test_calibration_composes_every_stage(accountant: Any, spent: tuple[LedgerEntry, ...]) -> None:
    shape = pieces(factors(LinearSchedule(2.0, 0.5), 400))
    sigma = calibrate_noise_multiplier(
        eps=4.0, delta=1e-5, sample_rate=0.01, steps=400, accountant=accountant, spent=spent, factors=shape
    )
    entries = [*spent, *(LedgerEntry(GaussianEvent(sigma * factor, 0.01), steps) for factor, steps in shape)]
    assert 0.99 * 4 <= get_accountant(accountant).epsilon(entries, 1e-5) <= 4
    constant = calibrate_noise_multiplier(
        eps=4.0, delta=1e-5, sample_rate=0.01, steps=400, accountant=accountant, spent=spent
    )
    assert 0.5 * sigma < constant < 2.0 * sigma


def test_factors_that_do_not_make_up_the_steps_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="do not make up"):
        calibrate_noise_multiplier(eps=1, delta=1e-5, sample_rate=0.1, steps=10, factors=((1.0, 9),))


@pytest.mark.parametrize("first_last", [(3.0, 0.6), (0.6, 3.0)])
@pytest.mark.parametrize("eps", [0.3, 1.0, 3.0, 1e3])
def test_the_affordable_prefix_is_the_longest(first_last: tuple[float, float], eps: float) -> None:
    """Against trying every length, with the accountant whose sums are quick."""
    noise = factors(LinearSchedule(*first_last), 60)

    def plan(k: int) -> list[LedgerEntry]:
        return [LedgerEntry(GaussianEvent(sigma, 0.1), 1) for sigma in noise[:k]]

    exact = get_accountant("rdp")
    fits = [k for k in range(1, 61) if exact.epsilon(plan(k), 1e-5) <= eps]
    found = affordable_prefix(eps=eps, delta=1e-5, plan=plan, accountant="rdp", limit=60)
    assert found == max(fits, default=0)


def test_the_meter_meets_the_accountant_at_the_end_of_a_scheduled_plan() -> None:
    plan = [LedgerEntry(GaussianEvent(factor, 0.02), steps) for factor, steps in pieces(factors(LinearSchedule(), 100))]
    meter = EpsilonMeter(1e-5)
    meter.prime_with(plan)
    exact = get_accountant("pld")
    assert meter.epsilon(plan) == exact.epsilon(plan, 1e-5)
    for length in (1, 8, 15):
        assert meter.epsilon(plan[:length]) >= exact.epsilon(plan[:length], 1e-5) - 1e-9

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant as Peer
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dp.accounting import (
    Accountant,
    GaussianEvent,
    LedgerEntry,
    PLDAccountant,
    RDPAccountant,
    get_accountant,
)
from lightning_dp.accounting.gaussian import gaussian_epsilon
from lightning_dp.errors import PrivacyConfigError

PLD, RDP = PLDAccountant(), RDPAccountant()


def ledger(*events: tuple[float, float, int]) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, q), steps) for sigma, q, steps in events]


def peer(*events: tuple[float, float, int]) -> Peer:
    accountant = Peer()
    for sigma, q, steps in events:
        accountant.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma)), steps)
    return accountant


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # dp-accounting 0.6.0 with its finest usual grid, 1e-4
        ([(1.0, 0.01, 1000)], 1.828244),
        ([(0.8, 0.004, 10_000)], 3.534866),
        ([(0.6, 0.0005, 100_000)], 2.968969),
    ],
)
def test_reference_values(events: list[tuple[float, float, int]], expected: float) -> None:
    eps = PLD.epsilon(ledger(*events), 1e-5)
    assert 0.9999 * expected <= eps <= 1.003 * expected


@pytest.mark.parametrize(
    "events",
    [
        [(2.0, 0.1, 100)],
        [(4.0, 0.5, 50)],
        [(1.0, 0.5, 1)],
        [(1.0, 0.9, 20)],
        [(5.0, 1.0, 10), (2.0, 0.01, 100)],
        [(1.0, 0.01, 500), (0.8, 0.02, 100), (3.0, 0.2, 30)],
    ],
)
def test_eps_and_delta_agree_with_dp_accounting_from_above(events: list[tuple[float, float, int]]) -> None:
    truth = peer(*events)
    eps, delta = PLD.epsilon(ledger(*events), 1e-5), PLD.delta(ledger(*events), 1.0)
    # Both are upper bounds: ours, on a wider grid, lies at most 0.3 % above and must not lie below the finer
    # one.
    assert 0.9999 <= eps / truth.get_epsilon(1e-5) <= 1.003
    assert 0.999 <= delta / truth.get_delta(1.0) <= 1.01
    assert RDP.epsilon(ledger(*events), 1e-5) >= eps
    assert RDP.delta(ledger(*events), 1.0) >= delta


def test_every_step_and_every_entry_counts() -> None:
    one = PLD.epsilon(ledger((1.0, 0.01, 1000)), 1e-5)
    assert PLD.epsilon(ledger((1.0, 0.01, 1000), (1.0, 0.02, 1000)), 1e-5) > 2.0 * one
    split = ledger((1.0, 0.01, 400), (1.0, 0.01, 600))
    assert PLD.epsilon(split, 1e-5) == one
    assert RDP.epsilon(split, 1e-5) == pytest.approx(RDP.epsilon(ledger((1.0, 0.01, 1000)), 1e-5))
    mixed = ledger((2.0, 0.1, 50), (5.0, 1.0, 3), (1.0, 0.02, 20))
    assert PLD.epsilon(mixed, 1e-5) == PLD.epsilon(mixed[::-1], 1e-5)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_without_amplification_the_gaussian_closed_form_is_used(sampling: str) -> None:
    entries = [
        LedgerEntry(GaussianEvent(3.0, 1.0, sampling), 10),  # type: ignore[arg-type]
        LedgerEntry(GaussianEvent(2.0), 1),
    ]
    mu = math.sqrt(10.0 / 9.0 + 0.25)
    assert PLD.epsilon(entries, 1e-5) == gaussian_epsilon(mu, 1e-5)
    assert PLD.epsilon(entries, 1e-5) == pytest.approx(peer((3.0, 1.0, 10), (2.0, 1.0, 1)).get_epsilon(1e-5), rel=1e-4)


def test_shuffling_is_never_amplified() -> None:
    """The trap: one epoch of 100 shuffled batches, reported with the eps of Poisson sampling at q = 0.01."""
    shuffled = [LedgerEntry(GaussianEvent(1.0, 1.0, "shuffle"), 1)]
    assert PLD.epsilon(shuffled, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert PLD.epsilon(shuffled, 1e-5) > 3.0 * PLD.epsilon(ledger((1.0, 0.01, 100)), 1e-5)


def privacy_losses(
    rng: np.random.Generator, sigma: float, q: float, steps: int, draws: int, remove: bool
) -> np.ndarray:
    total = np.zeros(draws)
    for _ in range(steps):
        x = sigma * rng.standard_normal(draws) + ((rng.random(draws) < q) if remove else 0.0)
        ratio = np.log1p(q * np.expm1((2.0 * x - 1.0) / (2.0 * sigma**2)))
        total += ratio if remove else -ratio
    return total


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize(
    ("sigma", "q", "steps", "eps"), [(1.0, 0.1, 30, 1.0), (2.0, 0.5, 20, 1.0), (0.7, 0.05, 20, 0.5)]
)
def test_simulated_privacy_losses(remove: bool, sigma: float, q: float, steps: int, eps: float) -> None:
    """delta(eps) = E[(1 - e^(eps - L))_+] by simulation; false alarms below 1e-6 at five standard errors."""
    losses = privacy_losses(np.random.default_rng(1), sigma, q, steps, 200_000, remove)
    gains = np.maximum(0.0, -np.expm1(eps - losses))
    error = 5.0 * gains.std() / math.sqrt(len(gains))
    composition = PLD.composition(ledger((sigma, q, steps)))
    assert composition is not None
    delta = composition.delta_remove(eps) if remove else composition.delta_add(eps)
    assert gains.mean() - error <= delta <= gains.mean() + error + 1e-3 * gains.mean()
    assert PLD.delta(ledger((sigma, q, steps)), eps) >= delta - 1e-12


def test_both_directions_are_in_the_answer() -> None:
    """Adding and removing differ, and neither may be dropped."""
    composition = PLD.composition(ledger((0.7, 0.3, 20)))
    assert composition is not None
    for eps in (0.0, 0.5, 2.0):
        assert composition.delta(eps) == max(composition.delta_remove(eps), composition.delta_add(eps))
    assert composition.delta_remove(0.0) == pytest.approx(composition.delta_add(0.0), rel=1e-3)
    assert composition.delta_remove(2.0) > 1.2 * composition.delta_add(2.0)
    swapped = replace(composition, remove=composition.add, add=composition.remove)
    assert swapped.epsilon(1e-5) == composition.epsilon(1e-5)
    assert swapped.delta(1.0) == composition.delta(1.0)


scales = st.floats(-0.6, 1.0).map(lambda x: 10.0**x)
rates = st.floats(-4.0, 0.0).map(lambda x: 10.0**x)
lengths = st.floats(0.0, 4.0).map(lambda x: round(10.0**x))


@pytest.mark.parametrize("accountant", [PLD, RDP], ids=["pld", "rdp"])
@settings(max_examples=12)
@given(sigma=scales, q=rates, steps=lengths)
def test_eps_grows_with_steps_and_rate_and_falls_with_noise(
    accountant: Accountant, sigma: float, q: float, steps: int
) -> None:
    eps = accountant.epsilon(ledger((sigma, q, steps)), 1e-5)
    assert accountant.epsilon(ledger((sigma, q, steps + 1)), 1e-5) >= eps * (1.0 - 1e-9)
    assert accountant.epsilon(ledger((sigma, q, 2 * steps)), 1e-5) >= eps * (1.0 - 1e-9)
    # Across grids of different events only up to their tolerance.
    assert accountant.epsilon(ledger((1.1 * sigma, q, steps)), 1e-5) <= eps * 1.001 + 1e-9
    assert accountant.epsilon(ledger((sigma, min(1.0, 1.1 * q), steps)), 1e-5) >= eps * 0.999 - 1e-9
    assert accountant.epsilon(ledger((sigma, q, steps)), 1e-7) >= eps


@settings(max_examples=10)
@given(sigma=scales, q=rates, steps=lengths, eps=st.floats(0.05, 8.0))
def test_delta_inverts_eps_and_renyi_lies_above(sigma: float, q: float, steps: int, eps: float) -> None:
    entries = ledger((sigma, q, steps))
    delta = PLD.delta(entries, eps)
    assert RDP.delta(entries, eps) >= delta
    assert RDP.epsilon(entries, 1e-5) >= PLD.epsilon(entries, 1e-5)
    if 1e-7 < delta < 0.99:
        assert PLD.epsilon(entries, delta) == pytest.approx(eps, rel=1e-2, abs=1e-2)
        assert PLD.epsilon(entries, delta * 1.001) <= eps * 1.001 + 1e-6


@pytest.mark.timeout(120)
def test_extreme_settings_neither_hang_nor_fill_the_memory() -> None:
    tracemalloc.start()
    try:
        for sigma, q, steps in itertools.product((1e-300, 1e-6, 1e-2, 1.0, 1e6), (1e-6, 0.5, 1.0), (1, 10**6)):
            entries = ledger((sigma, q, steps))
            for accountant in (PLD, RDP):
                eps, delta = accountant.epsilon(entries, 1e-5), accountant.delta(entries, 1.0)
                assert eps >= 0.0
                assert 0.0 <= delta <= 1.0
            assert RDP.epsilon(entries, 1e-5) >= PLD.epsilon(entries, 1e-5)
        assert tracemalloc.get_traced_memory()[1] < 500e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("smaller", "whole"),
    [
        ([(1e-4, 0.01, 1000)], [(1e-4, 0.01, 1000), (1.0, 0.01, 1000)]),
        ([(1e-4, 0.01, 1000)], [(1e-4, 0.01, 1000), (1e-4, 1e-5, 10)]),
        ([(1.0001e-4, 0.01, 2000)], [(1e-4, 0.01, 1000), (1.0001e-4, 0.01, 1000)]),
        ([(1e-4, 0.01, 1000)], [(1e-4, 0.01, 1000), (10.0, 1.0, 5)]),
    ],
)
def test_without_a_grid_a_mixed_ledger_costs_no_less_than_what_it_dominates(
    smaller: list[tuple[float, float, int]], whole: list[tuple[float, float, int]]
) -> None:
    assert PLD.composition(ledger(*whole)) is None
    assert PLD.epsilon(ledger(*whole), 1e-5) >= PLD.epsilon(ledger(*smaller), 1e-5)
    assert PLD.delta(ledger(*whole), 1e8) >= PLD.delta(ledger(*smaller), 1e8)


@pytest.mark.parametrize("delta", [1e-12, 1e-30])
def test_a_delta_below_the_rounding_error_falls_back_to_a_closed_form(delta: float) -> None:
    entries = ledger((1.0, 0.01, 100_000))
    assert PLD.epsilon(entries, delta) == RDP.epsilon(entries, delta)


@pytest.mark.parametrize(("sigma", "q", "steps"), [(100.0, 0.01, 10**6), (1e4, 0.1, 10**5), (1e6, 0.5, 10**6)])
def test_many_noisy_steps_stay_above_their_gaussian_limit(sigma: float, q: float, steps: int) -> None:
    """The central limit is accurate here, so a bound below it would be a rounding error."""
    limit = gaussian_epsilon(q * math.sqrt(steps * math.expm1(sigma**-2)), 1e-5)
    assert limit * 0.9999 <= PLD.epsilon(ledger((sigma, q, steps)), 1e-5) <= 1.1 * limit


@pytest.mark.parametrize("name", ["pld", "rdp", "prv"])
def test_nothing_spent_and_nothing_private(name: str) -> None:
    accountant = get_accountant(name)  # type: ignore[arg-type]
    assert accountant.name == name
    assert accountant.epsilon([], 1e-5) == 0.0
    assert accountant.delta([], 1.0) == 0.0
    without_noise = ledger((1.0, 0.01, 10), (0.0, 0.01, 1))
    assert accountant.epsilon(without_noise, 1e-5) == math.inf
    assert accountant.delta(without_noise, 1.0) == 1.0


@pytest.mark.parametrize("name", ["pld", "rdp", "prv"])
def test_impossible_questions_are_refused(name: str) -> None:
    accountant = get_accountant(name)  # type: ignore[arg-type]
    for delta in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(PrivacyConfigError, match="delta"):
            accountant.epsilon(ledger((1.0, 0.1, 1)), delta)
    for eps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PrivacyConfigError, match="eps"):
            accountant.delta(ledger((1.0, 0.1, 1)), eps)


def test_an_unknown_accountant_is_named() -> None:
    with pytest.raises(PrivacyConfigError, match="gdp"):
        get_accountant("gdp")  # type: ignore[arg-type]

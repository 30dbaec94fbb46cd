"""The worst case of a ledger: reference table, closed forms, simulation, properties, and huge eps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    TradeOffCurve,
    edgeworth_gamma,
    gaussian_gamma,
    get_accountant,
    membership_bound,
    reconstruction_bound,
    subsampled_gamma,
)
from lightning_dp.accounting.risk.reconstruction import reconstruction_gamma
from lightning_dp.errors import PrivacyConfigError


def ledger(*events: tuple[float, float, int]) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, rate), steps) for sigma, rate, steps in events]


# --- truth ------------------------------------------------------------------------------------------------------------
# sigma, rate, steps, kappa; exact by FFT (its grid error: 3e-5 for 1000 steps, 1e-6 otherwise); Edgeworth.
TABLE = [
    (1.0, 0.01, 1000, 0.1, 0.194200, 0.194190),
    (1.0, 0.01, 1000, 0.01, 0.029139, 0.029101),
    (0.6, 0.01, 1000, 0.1, 0.417230, 0.417648),
    (2.0, 0.1, 100, 0.1, 0.227590, 0.227591),
    (2.0, 0.1, 100, 0.001, 0.005680, 0.005672),
    (1.0, 0.1, 100, 0.1, 0.469186, 0.469181),
    (4.0, 0.5, 50, 0.1, 0.347793, 0.347793),
    (0.5, 0.001, 1000, 0.1, 0.147255, None),
    (1.0, 0.02, 300, 0.001, 0.004874, 0.004860),
]


@pytest.mark.parametrize(("sigma", "rate", "steps", "kappa", "exact", "edgeworth"), TABLE)
def test_composed_subsampled_table(
    sigma: float, rate: float, steps: int, kappa: float, exact: float, edgeworth: float | None
) -> None:
    """The table's direction is "remove"; the bound lies above by no more than its stated error."""
    grid = 3e-5 if steps == 1000 else 1e-6
    bound = reconstruction_bound(ledger((sigma, rate, steps)), kappa, "remove")
    assert bound.method == "pld"
    assert exact - grid <= bound.gamma <= exact + bound.error + grid
    assert 0.0 < bound.error < 4e-4 * bound.gamma + 2e-9
    # The grid's error falls with the square of its width: a third of the difference is left.
    assert bound.gamma - bound.error / 3.0 == pytest.approx(exact, abs=grid)
    if edgeworth is None:
        with pytest.raises(PrivacyConfigError, match="has not converged"):
            edgeworth_gamma(ledger((sigma, rate, steps)), kappa)
    else:
        assert edgeworth_gamma(ledger((sigma, rate, steps)), kappa) == pytest.approx(edgeworth, abs=6e-7)


@pytest.mark.parametrize("steps", [1, 7, 400])
@pytest.mark.parametrize("kappa", [1e-9, 1e-3, 0.1, 0.9])
def test_without_amplification_it_is_the_closed_form(steps: int, kappa: float) -> None:
    bound = reconstruction_bound(ledger((3.0, 1.0, steps)), kappa)
    assert bound.gamma == float(gaussian_gamma(kappa, math.sqrt(steps) / 3.0))
    assert (bound.method, bound.error) == ("gaussian", 0.0)


@pytest.mark.parametrize(("sigma", "rate"), [(0.3, 0.01), (1.0, 0.1), (0.6, 0.5), (5.0, 0.9)])
@pytest.mark.parametrize("kappa", [1e-6, 1e-3, 0.1, 0.9])
def test_one_step_meets_its_closed_form(sigma: float, rate: float, kappa: float) -> None:
    exact = float(subsampled_gamma(kappa, 1.0 / sigma, rate))
    bound = reconstruction_bound(ledger((sigma, rate, 1)), kappa, "remove")
    assert exact * (1 - 1e-12) <= bound.gamma <= exact * (1 + 1e-3) + 1e-12
    assert bound.gamma - bound.error <= exact * (1 + 1e-9)


MIXED = ledger((1.0, 0.05, 60), (0.7, 0.02, 40), (6.0, 1.0, 2))


@pytest.mark.parametrize(
    "entries", [MIXED, ledger((0.5, 0.001, 1000)), ledger((0.8, 0.3, 12))], ids=["mixed", "rare", "few"]
)
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_simulated_likelihood_ratio_test(entries: list[LedgerEntry], direction: str) -> None:
    """The best attack, simulated: its power at its own size. Six standard errors a rate: false alarms below 1e-7."""
    generator, runs = np.random.default_rng(11), 10_000
    null, alternative = (_ratios(entries, generator, runs, with_unit) for with_unit in (False, True))
    if direction == "add":
        null, alternative = -alternative, -null
    for kappa in (0.02, 0.1, 0.5):
        threshold = float(np.quantile(null, 1.0 - kappa))
        power = float(np.mean(alternative > threshold))
        # The size realised by the threshold is off by its own standard error, which the bound's slope carries over.
        slack = 6 * math.sqrt(kappa * (1 - kappa) / runs)
        low, high = (reconstruction_gamma(entries, kappa + s, "full", direction) for s in (-slack, slack))  # type: ignore[arg-type]
        error = 6 * math.sqrt(0.25 / runs)
        assert low - error < power < high + error


def _ratios(entries: Sequence[LedgerEntry], generator: np.random.Generator, runs: int, with_unit: bool) -> np.ndarray:
    """Summed log-likelihood ratios of simulated runs, by the densities alone."""
    total = np.zeros(runs)
    for entry in entries:
        mu, rate = 1.0 / entry.event.noise_multiplier, entry.event.sample_rate
        for _ in range(entry.steps):
            drawn = generator.random(runs) < rate if with_unit else 0.0
            z = generator.standard_normal(runs) + mu * drawn
            total += np.log1p(rate * np.expm1(mu * z - 0.5 * mu * mu))
    return total


# --- directions -------------------------------------------------------------------------------------------------------
def test_the_papers_direction_has_the_run_without_the_sample_as_null() -> None:
    """Rarely drawn, clearly seen: from "without" the test finds it, from "with" it can seldom be sure of its absence."""
    entries = ledger((0.5, 0.02, 20))
    remove, add = (reconstruction_bound(entries, 0.001, side) for side in ("remove", "add"))  # type: ignore[arg-type]
    assert remove.gamma > 1.1 * add.gamma
    worst = reconstruction_bound(entries, 0.001)
    assert (worst.gamma, worst.direction) == (remove.gamma, "remove")


@given(st.floats(0.4, 3.0), st.floats(0.01, 0.9), st.integers(1, 40), st.floats(1e-3, 0.5))
@settings(max_examples=5, deadline=None)
def test_the_directions_are_inverse_to_each_other(sigma: float, rate: float, steps: int, kappa: float) -> None:
    """gamma_add(1 - gamma_remove(kappa)) = 1 - kappa: the same curve read along the other axis."""
    entries = ledger((sigma, rate, steps))
    gamma = reconstruction_bound(entries, kappa, "remove").gamma
    if gamma < 1 - 1e-3:
        assert reconstruction_bound(entries, 1.0 - gamma, "add").gamma == pytest.approx(1.0 - kappa, abs=2e-3)


def test_no_looser_than_the_trade_off_curve() -> None:
    for entries in (MIXED, ledger((1.0, 0.01, 1000)), ledger((1e-3, 0.01, 50)), ledger((2.0, 1.0, 4))):
        for kappa in (1e-4, 0.3):
            assert reconstruction_bound(entries, kappa).gamma <= float(TradeOffCurve(entries).tpr(kappa)) + 1e-9


# --- properties -------------------------------------------------------------------------------------------------------
@given(st.floats(0.4, 5.0), st.floats(1e-3, 1.0), st.integers(1, 60), st.floats(1e-6, 0.9))
@settings(max_examples=4, deadline=None)
def test_monotone_in_everything(sigma: float, rate: float, steps: int, kappa: float) -> None:
    def gamma(s: float = sigma, q: float = rate, t: int = steps, k: float = kappa) -> float:
        return reconstruction_gamma(ledger((s, q, t)), k)

    here, room = gamma(), 1 + 2e-3  # the grid's error moves with the settings
    assert kappa <= here <= 1.0
    assert gamma(s=1.2 * sigma) <= room * here
    assert gamma(q=0.7 * rate) <= room * here
    assert gamma(t=2 * steps) * room >= here
    assert gamma(k=min(1.0, 1.3 * kappa)) * room >= here
    for effort in ("closed", "coarse"):
        assert reconstruction_gamma(ledger((sigma, rate, steps)), kappa, effort) * (1 + 1e-6) >= here  # type: ignore[arg-type]


def test_the_limits_of_noise() -> None:
    for rate in (0.01, 1.0):
        assert reconstruction_bound(ledger((1e9, rate, 10)), 0.1).gamma == pytest.approx(0.1, abs=1e-6)
    assert reconstruction_bound(ledger((1e-9, 1.0, 1)), 1e-12).gamma == 1.0
    # A unit that is seldom drawn is seldom seen, however little noise there is.
    rare = reconstruction_bound(ledger((1e-9, 0.01, 10)), 1e-3, "remove")
    seen = 1 - 0.99**10
    assert rare.gamma == pytest.approx(seen + (1 - seen) * 1e-3, rel=1e-6)
    assert rare.error < 1e-6


def test_nothing_released_and_no_noise() -> None:
    for kappa in (0.0, 1e-3, 0.7, 1.0):
        assert reconstruction_bound([], kappa).gamma == kappa
        assert reconstruction_bound(ledger((0.0, 0.01, 1)), kappa).gamma == 1.0
    assert reconstruction_bound([], 0.1).error == 0.0
    assert "nothing released" in str(reconstruction_bound([], 0.1))
    assert reconstruction_bound(ledger((1.0, 0.1, 10)), 0.0).gamma == 0.0
    assert reconstruction_bound(ledger((1.0, 0.1, 10)), 1.0).gamma == 1.0


@pytest.mark.parametrize("eps", [1e3, 1e5, 1e7, 1e9])
@pytest.mark.parametrize("rate", [0.001, 0.02, 1.0])
def test_huge_eps(eps: float, rate: float) -> None:
    """No overflow, and still between an attack that exists and one."""
    sigma, steps, kappa = 1.0 / math.sqrt(2 * eps), 500, 1e-4
    entries = ledger((sigma, rate, steps))
    assert get_accountant("pld").epsilon(entries, 1e-6) > 0.5 * eps
    bound = reconstruction_bound(entries, kappa)
    seen = 1 - (1 - rate) ** steps if rate < 1 else 1.0
    assert seen + (1 - seen) * kappa - 1e-3 <= bound.gamma <= 1.0
    assert reconstruction_bound(entries, kappa, "remove").gamma <= seen + (1 - seen) * kappa + 1e-3
    assert 0.0 <= bound.error < 2e-3


def test_cut_draws_are_added() -> None:
    entries = [LedgerEntry(GaussianEvent(1.0, 0.05, "truncated_poisson", 1e-4), 100)]
    plain = reconstruction_bound(ledger((1.0, 0.05, 100)), 0.01)
    cut = reconstruction_bound(entries, 0.01)
    assert cut.gamma == pytest.approx(plain.gamma + 0.01, rel=1e-9)
    assert cut.error >= 0.01
    hopeless = [LedgerEntry(GaussianEvent(1.0, 0.05, "truncated_poisson", 1.0), 1)]
    assert reconstruction_bound(hopeless, 0.01).gamma == 1.0


def test_shuffled_passes_are_full_steps() -> None:
    entries = [LedgerEntry(GaussianEvent(4.0, 1.0, "shuffle"), 9)]
    assert reconstruction_bound(entries, 0.05).gamma == float(gaussian_gamma(0.05, 0.75))


def test_printed_bounds_are_rounded_up() -> None:
    for kappa in (1e-7, 0.00123, 0.1, 0.999):
        bound = reconstruction_bound(ledger((1.0, 0.05, 100)), kappa)
        assert float(str(bound).split("at most ")[1].split()[0]) >= bound.gamma


def test_membership_bounds() -> None:
    bound = membership_bound(MIXED, (1e-3, 0.1))
    curve = TradeOffCurve(MIXED)
    assert bound.advantage == pytest.approx(curve.membership_advantage, rel=1e-9)
    np.testing.assert_allclose(bound.tpr, curve.tpr([1e-3, 0.1]), rtol=2e-3)
    assert membership_bound([]).advantage == 0.0
    assert membership_bound([]).tpr == membership_bound([]).fpr
    assert membership_bound(ledger((0.0, 0.1, 1))).advantage == 1.0


@pytest.mark.parametrize("kappa", [-0.1, 1.1, math.nan])
def test_bad_kappa_is_refused(kappa: float) -> None:
    with pytest.raises(PrivacyConfigError, match="kappa"):
        reconstruction_bound(MIXED, kappa)


def test_bad_direction_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="direction"):
        reconstruction_bound(MIXED, 0.1, "both")  # type: ignore[arg-type]


# --- Edgeworth --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.5, 0.8, 2.0])
@pytest.mark.parametrize("rate", [0.003, 0.03, 0.3])
def test_edgeworth_is_close_or_refused(sigma: float, rate: float) -> None:
    for steps in (30, 1000):
        for kappa in (0.1, 1e-3):
            entries = ledger((sigma, rate, steps))
            try:
                approximate = edgeworth_gamma(entries, kappa)
            except PrivacyConfigError:
                continue
            assert approximate == pytest.approx(reconstruction_bound(entries, kappa, "remove").gamma, rel=0.04)


@pytest.mark.parametrize(
    "entries",
    [
        ledger((1.0, 0.1, 29)),
        ledger((0.01, 0.1, 100)),
        [LedgerEntry(GaussianEvent(1.0, 0.1, "truncated_poisson", 1e-9), 99)],
    ],
    ids=["few steps", "little noise", "cut draws"],
)
def test_edgeworth_refuses(entries: list[LedgerEntry]) -> None:
    with pytest.raises(PrivacyConfigError, match="reconstruction_bound"):
        edgeworth_gamma(entries, 0.1)


def test_edgeworth_of_one_gaussian_is_exact() -> None:
    assert edgeworth_gamma(ledger((6.0, 1.0, 36)), 0.05) == pytest.approx(float(gaussian_gamma(0.05, 1.0)), rel=1e-8)

"""A pass over balls-in-bins batches against integrals, exact moments, and simulations with a stated error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammaln

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    PLDAccountant,
    PrivacyLedger,
    affordable_steps,
    calibrate_noise_multiplier,
    edgeworth_gamma,
    get_accountant,
    reconstruction_bound,
)
from lightning_dp.accounting.allocation import BallsInBins, mean_of_ratios
from lightning_dp.accounting.profile import profile_add, profile_remove
from lightning_dp.errors import PrivacyConfigError, PrivacyError

PLD = PLDAccountant()
EPS = np.array([-3.0, -1.0, -0.3, -0.05, 0.0, 0.02, 0.1, 0.3, 1.0, 2.0, 4.0])


def passes(sigma: float, bins: int, times: int = 1) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, sampling="balls_in_bins", bins=bins), times)]


def integrated(sigma: float, eps: float, remove: bool) -> float:
    """The divergence for two bins: over one noise in closed form, over the other by a fine sum."""
    x = np.linspace(-9.0, 9.0, 20001)
    weights = stats.norm.pdf(x) * (x[1] - x[0])
    first = np.exp(x / sigma - 0.5 / sigma**2)  # the first ratio; the second is exp(z / sigma - 1 / (2 sigma^2))
    # 2 A = first + second crosses 2 e^eps (or 2 e^-eps) where second = rest
    rest = 2.0 * math.exp(eps if remove else -eps) - first
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(rest > 0.0, sigma * np.log(rest) + 0.5 / sigma, -np.inf)
    mass, mean = stats.norm.sf(z), stats.norm.sf(z - 1.0 / sigma)  # P(second > rest), E second 1(second > rest)
    if remove:  # E max(0, (first + second) / 2 - e^eps)
        return float(weights @ (0.5 * (mean - rest * mass)))
    # e^eps E max(0, e^-eps - (first + second) / 2)
    return math.exp(eps) * float(weights @ (0.5 * (rest * (1.0 - mass) - (1.0 - mean)) * (rest > 0.0)))


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0, 3.0, 50.0])
def test_one_bin_is_the_gaussian(sigma: float) -> None:
    eps = EPS / max(sigma, 1.0)
    mechanism = BallsInBins(sigma, 1)
    grid = mean_of_ratios(sigma, 1).losses
    for remove, exact in ((True, profile_remove), (False, profile_add)):
        truth = exact(sigma, 1.0, eps)
        bound = mechanism.divergence(remove, eps)
        assert np.all(bound >= truth)
        assert np.all(bound <= truth * 1.002 + 1e-12)
        # Splitting a cell's mass between its ends leaves the divergence at the grid's own points as it is.
        points = np.where(remove, 1.0, -1.0) * grid[:: max(1, len(grid) // 50)]
        assert mechanism.divergence(remove, points) == pytest.approx(exact(sigma, 1.0, points), rel=1e-6, abs=1e-12)


@given(st.floats(0.3, 20.0), st.floats(-2.0, 2.0), st.booleans())
@settings(max_examples=60, deadline=None)
def test_two_bins_are_bounded_from_above_and_closely(sigma: float, scaled: float, remove: bool) -> None:
    eps = scaled / sigma
    truth = integrated(sigma, eps, remove)
    bound = float(BallsInBins(sigma, 2).divergence(remove, np.array([eps]))[0])
    assert truth <= bound + 1e-9
    assert bound <= 1.002 * truth + 1e-8


def exact_moment(sigma: float, bins: int, order: int) -> float:
    """E A^order without the unit, exactly: order! [z^order] (sum_k z^k exp((k^2 - k) / (2 sigma^2)) / k!)^bins / bins^order."""
    k = np.arange(order + 1.0)
    one = np.exp((k * k - k) / 2.0 / sigma**2 - gammaln(k + 1.0))
    power = np.eye(1, order + 1)[0]
    for _ in range(bins):
        power = np.convolve(power, one)[: order + 1]
    return float(power[order] * math.exp(gammaln(order + 1.0)) / bins**order)


@pytest.mark.parametrize(
    ("sigma", "bins"), [(1.0, 2), (1.0, 3), (1.0, 100), (2.0, 37), (5.0, 1000), (0.8, 517), (200.0, 9)]
)
def test_moments_are_those_of_the_mean_from_above(sigma: float, bins: int) -> None:
    """A larger law in the convex order has the same mean, and no smaller higher moments."""
    law = mean_of_ratios(sigma, bins)
    values = np.exp(law.losses)
    assert law.masses.sum() == pytest.approx(1.0, abs=1e-11)
    assert law.masses @ values == pytest.approx(1.0, abs=1e-11)
    variance = (law.masses @ (values - 1.0) ** 2) * bins / math.expm1(sigma**-2)
    assert 1.0 - 1e-6 <= variance <= 1.002
    for order in (2, 3, 4):
        exact = exact_moment(sigma, bins, order)
        assert exact * (1.0 - 1e-9) <= law.masses @ values**order <= exact * 1.001


def test_what_grids_leave_out_adds_up() -> None:
    """Every term leaves something out, and all of it counts in both directions."""
    one, many = mean_of_ratios(1.0, 1), mean_of_ratios(1.0, 200)
    assert 0.0 < 200 * one.beyond <= many.beyond < 1e-16
    far = np.array([60.0])
    assert many.removing(far)[0] == many.adding(far)[0] == many.beyond
    assert one.losses[0] < many.losses[0] < many.losses[-1] < one.losses[-1]


def simulated(sigma: float, bins: int, times: int, eps: float, remove: bool, draws: int) -> tuple[float, float]:
    """Divergence of ``times`` passes and its standard error, from the law of the noise itself."""
    rng = np.random.default_rng(5)
    loss = np.zeros(draws)
    for _ in range(times):
        z = rng.standard_normal((draws, bins)) * sigma
        if remove:
            z[np.arange(draws), rng.integers(0, bins, draws)] += 1.0
        ratio = np.exp(z / sigma**2 - 0.5 / sigma**2).mean(1)
        loss += np.log(ratio) if remove else -np.log(ratio)
    values = np.maximum(0.0, -np.expm1(eps - loss))
    return float(values.mean()), float(values.std() / math.sqrt(draws))


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize(("sigma", "bins", "times", "eps"), [(1.0, 10, 1, 0.5), (0.6, 7, 3, 2.0), (1.0, 20, 5, 1.0)])
def test_a_simulation_of_the_passes_agrees(sigma: float, bins: int, times: int, eps: float, remove: bool) -> None:
    """Fixed seed; five standard errors, a false-alarm rate of 6e-7 a case."""
    estimate, error = simulated(sigma, bins, times, eps, remove, 200_000)
    composition = PLD.composition(passes(sigma, bins, times))
    assert composition is not None
    bound = composition.delta_remove(eps) if remove else composition.delta_add(eps)
    assert estimate > 20 * error  # there is something to see
    assert estimate - 5.0 * error <= bound <= 1.01 * estimate + 5.0 * error


@pytest.mark.parametrize("remove", [True, False])
def test_more_bins_and_more_noise_never_cost_more(remove: bool) -> None:
    eps = np.linspace(-2.0, 3.0, 41)
    by_bins = [BallsInBins(0.9, bins).divergence(remove, eps) for bins in (1, 2, 3, 5, 8, 64, 65, 1000)]
    by_noise = [BallsInBins(sigma, 12).divergence(remove, eps) for sigma in (0.4, 0.41, 0.8, 1.6, 10.0)]
    for chain in (by_bins, by_noise):
        for more, less in zip(chain, chain[1:], strict=False):
            assert np.all(less <= more * (1.0 + 2e-3) + 1e-12)


def test_a_pass_costs_more_than_nothing_and_less_than_the_gaussian_and_about_as_much_as_poisson() -> None:
    """The order of magnitude of amplification, from an accountant of other steps."""
    for sigma, bins, times in ((1.0, 100, 10), (2.0, 50, 100), (0.7, 300, 4)):
        bound = PLD.epsilon(passes(sigma, bins, times), 1e-5)
        poisson = PLD.epsilon([LedgerEntry(GaussianEvent(sigma, 1.0 / bins), bins * times)], 1e-5)
        whole = PLD.epsilon([LedgerEntry(GaussianEvent(sigma), times)], 1e-5)
        assert 0.8 * poisson < bound < 1.01 * poisson < whole


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_accountants_without_amplification_count_a_pass_as_one_gaussian_step(accountant: Any) -> None:
    exact = get_accountant(accountant)
    assert exact.epsilon(passes(2.0, 30, 4), 1e-5) == exact.epsilon([LedgerEntry(GaussianEvent(2.0), 4)], 1e-5)


def test_without_noise_to_speak_of_the_bound_is_that_of_the_gaussian() -> None:
    assert PLD.epsilon(passes(0.0, 30), 1e-5) == math.inf
    assert PLD.epsilon(passes(0.1, 30), 1e-5) == PLD.epsilon([LedgerEntry(GaussianEvent(0.1), 1)], 1e-5)
    assert PLD.epsilon(passes(1e6, 30), 1e-5) <= PLD.epsilon(passes(1e4, 30), 1e-5) * (1 + 1e-9)
    assert PLD.epsilon(passes(1.0, 10**9), 1e-5) <= PLD.epsilon(passes(1.0, 1 << 16), 1e-5)


@pytest.mark.parametrize(("sigma", "bins", "times"), [(1.0, 100, 1), (2.0, 20, 2), (0.6, 8, 3)])
def test_the_bound_on_reconstruction_from_passes_and_its_error_hold_the_best_test(
    sigma: float, bins: int, times: int
) -> None:
    """The likelihood ratio's test of size kappa, simulated to five standard errors of its size and its power."""
    kappa, draws = 0.05, 100_000
    found = reconstruction_bound(passes(sigma, bins, times), kappa, direction="remove")
    rng = np.random.default_rng(2)

    def ratios(with_unit: bool) -> npt.NDArray[np.float64]:
        product = np.ones(draws)
        for _ in range(times):
            z = rng.standard_normal((draws, bins)) / sigma
            if with_unit:
                z[np.arange(draws), rng.integers(0, bins, draws)] += sigma**-2
            product *= np.exp(z - 0.5 * sigma**-2).mean(1)
        return product

    threshold = float(np.quantile(ratios(False), 1.0 - kappa))
    power = float((ratios(True) > threshold).mean())
    error = 5.0 * (math.sqrt(power / draws) + threshold * math.sqrt(kappa / draws))
    assert kappa < power <= found.gamma + error
    assert found.gamma <= 1.01 * power + error
    assert kappa < found.gamma - found.error <= power + error


def test_an_expansion_that_knows_no_bins_refuses_them() -> None:
    with pytest.raises(PrivacyConfigError, match="balls-in-bins"):
        edgeworth_gamma(passes(0.7, 20, 40), 1e-4)


def test_passes_compose_with_steps_of_other_kinds() -> None:
    mixed = [*passes(1.2, 40, 3), LedgerEntry(GaussianEvent(1.0, 0.01), 100), LedgerEntry(GaussianEvent(4.0), 2)]
    parts = [PLD.epsilon([entry], 1e-5) for entry in mixed]
    together = PLD.epsilon(mixed, 1e-5)
    assert max(parts) < together < sum(parts)
    assert together == PLD.epsilon(mixed[::-1], 1e-5)  # in whatever order
    assert PLD.delta(mixed, together) <= 1e-5 * (1.0 + 1e-6)


def test_a_ledger_keeps_the_bins_and_refuses_a_pass_without_them() -> None:
    ledger = PrivacyLedger()
    ledger.charge(passes(1.0, 30)[0].event, 3)
    state = ledger.state_dict()
    assert list(state["segments"].values()) == [[[1.0, 1.0, "balls_in_bins", 3, 30]]]
    other = PrivacyLedger()
    other.merge(state)
    assert other.entries == ledger.entries
    for bad in ([1.0, 1.0, "balls_in_bins", 3], [1.0, 1.0, "shuffle", 3, 30], [1.0, 1.0, "balls_in_bins", 3, 30, 0]):
        with pytest.raises(PrivacyError, match="cannot be read"):
            other.merge({"version": 1, "segments": {ledger.segment: [bad]}})
    assert other.entries == ledger.entries


def test_noise_is_calibrated_to_passes() -> None:
    sigma = calibrate_noise_multiplier(
        eps=3.0, delta=1e-5, sample_rate=1.0, steps=10, sampling="balls_in_bins", bins=100
    )
    assert 0.99 * 3.0 <= PLD.epsilon(passes(sigma, 100, 10), 1e-5) <= 3.0
    event = GaussianEvent(sigma, sampling="balls_in_bins", bins=100)
    assert affordable_steps(eps=3.0, delta=1e-5, event=event, limit=100) == 10


def test_less_noise_is_needed_than_for_poisson_draws() -> None:
    poisson = calibrate_noise_multiplier(eps=3.0, delta=1e-5, sample_rate=0.01, steps=1000)
    sigma = calibrate_noise_multiplier(
        eps=3.0, delta=1e-5, sample_rate=1.0, steps=10, sampling="balls_in_bins", bins=100
    )
    assert sigma < poisson

"""The laws of reconstruction without a prior: reference table, the simulated attack, ledgers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, gamma, kstest

from lightning_dp.accounting import (
    FromScratchAttack,
    GaussianEvent,
    LedgerEntry,
    from_scratch_attack,
    noise_multiplier_against_reconstruction,
    risk_corridor,
)
from lightning_dp.errors import PrivacyConfigError


def ledger(*events: tuple[float, float, int]) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, rate), steps) for sigma, rate, steps in events]


@pytest.mark.parametrize(
    ("n", "sigma", "norm", "mse", "chance", "mean", "sd", "psnr"),
    [
        (1, 1.0, 1.0, 0.1, 0.248170, 1.0, 1.41421, 5.517116),
        (4, 0.5, 1.01, 0.2, 0.464825, 0.255025, 0.18033, 7.108343),
        (3072, 0.05, 1.01, 0.0025, 0.220992, 0.00255025, 6.5071e-5, 25.935586),
        (3072, 0.05, 1.01, 0.0026, 0.778794, 0.00255025, 6.5071e-5, 25.935586),
        (784, 0.1, 1.0, 0.0095, 0.161078, 0.01, 5.0508e-4, 20.005542),
        (10, 1.0, 2.0, 3.0, 0.322452, 4.0, 1.78885, -5.571886),
    ],
)
def test_table(
    n: int, sigma: float, norm: float, mse: float, chance: float, mean: float, sd: float, psnr: float
) -> None:
    attack = FromScratchAttack(sigma, n, norm)
    assert float(attack.mse_cdf(mse)) == pytest.approx(chance, abs=6e-7)
    assert attack.expected_mse == pytest.approx(mean, rel=1e-6)
    assert attack.sd_mse == pytest.approx(sd, rel=1e-5)
    assert attack.expected_psnr == pytest.approx(psnr, abs=6e-7)
    assert float(attack.psnr_sf(-10 * math.log10(mse))) == pytest.approx(chance, abs=6e-7)


@pytest.mark.parametrize(
    ("limit", "mse", "n", "norm", "sigma"),
    [(0.1, 0.1, 1, 1.0, 2.516508), (0.1, 0.01, 3072, 1.01, 0.100662), (0.05, 0.001, 3072, 20.0, 0.001615)],
)
def test_inverse_table(limit: float, mse: float, n: int, norm: float, sigma: float) -> None:
    found = noise_multiplier_against_reconstruction(limit, mse, n, norm)
    assert found == pytest.approx(sigma, abs=6e-7)
    assert float(FromScratchAttack(found, n, norm).mse_cdf(mse)) == pytest.approx(limit, rel=1e-9)


def test_correlation_bound_table() -> None:
    assert FromScratchAttack(0.05, 3072).ncc_bound == pytest.approx(0.339422, abs=6e-7)
    assert FromScratchAttack(0.1, 784).ncc_bound == pytest.approx(0.336336, abs=6e-7)


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("norm", [1.0, 1.7])
def test_the_simulated_attack_obeys_the_law(queries: int, norm: float) -> None:
    """Clip, add noise, average, rescale: Kolmogorov-Smirnov at p > 1e-6, the rate of false alarms."""
    generator, n, bound, sigma = np.random.default_rng(2), 6, 1.0, 0.4
    x = generator.standard_normal(n)
    x *= norm / np.linalg.norm(x)
    length = math.sqrt(queries) * norm
    errors = []
    for _ in range(4000):
        rows = np.tile(x, (queries, 1)) * min(1.0, bound / length)
        noisy = rows + sigma * bound * generator.standard_normal(rows.shape)
        errors.append(float(np.mean((noisy.mean(0) * max(1.0, length / bound) - x) ** 2)))
    assert kstest(errors, FromScratchAttack(sigma, n, norm).mse_cdf).pvalue > 1e-6
    assert kstest(errors, FromScratchAttack(1.2 * sigma, n, norm).mse_cdf).pvalue < 1e-6


@given(st.integers(1, 10**6), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.floats(0.0, 1e6))
def test_it_is_the_gamma_law(n: int, sigma: float, norm: float, mse: float) -> None:
    attack = FromScratchAttack(sigma, n, norm)
    law = gamma(n / 2, scale=2 * (sigma * norm) ** 2 / n)
    assert float(attack.mse_cdf(mse)) == pytest.approx(float(law.cdf(mse)), rel=1e-6, abs=1e-12)
    assert float(attack.mse_cdf(mse)) <= float(attack.mse_cdf(1.1 * mse + 1e-9))
    assert float(FromScratchAttack(1.1 * sigma, n, norm).mse_cdf(mse)) <= float(attack.mse_cdf(mse)) + 1e-15


def test_one_number_is_a_chi_square() -> None:
    attack = FromScratchAttack(2.0, 1, 3.0)
    np.testing.assert_allclose(attack.mse_cdf([0.0, 5.0, 50.0]), chi2.cdf(np.array([0.0, 5.0, 50.0]) / 36, 1))


def test_expected_psnr_by_simulation() -> None:
    """Six standard errors."""
    draws = np.random.default_rng(8).gamma(2.5, 2 * 0.49 / 5, 200_000)
    psnr = 10 * np.log10(4.0 / draws)
    attack = FromScratchAttack(0.7, 5, data_range=2.0)
    assert attack.expected_psnr == pytest.approx(float(psnr.mean()), abs=6 * float(psnr.std()) / math.sqrt(200_000))
    assert float(attack.psnr_sf(9.0)) == pytest.approx(float(np.mean(psnr >= 9.0)), abs=6 * 0.5 / math.sqrt(200_000))


# --- ledgers ----------------------------------------------------------------------------------------------------------
def test_averaging_over_a_ledger() -> None:
    entries = ledger((2.0, 0.1, 40), (1.0, 1.0, 3))
    assert from_scratch_attack(entries, 5, observed=1).noise_multiplier == 1.0
    assert from_scratch_attack(entries, 5, observed=4).noise_multiplier == pytest.approx((3 + 1 / 4) ** -0.5)
    assert from_scratch_attack(entries, 5, observed="all").noise_multiplier == pytest.approx((3 + 40 / 4) ** -0.5)
    assert from_scratch_attack(entries, 5).noise_multiplier == pytest.approx((3 + 4 / 4) ** -0.5)
    # Hardly ever drawn: the sample is then looked at where it was.
    assert from_scratch_attack(ledger((2.0, 1e-3, 10)), 5).noise_multiplier == 2.0


def test_ends() -> None:
    nothing = from_scratch_attack([], 3)
    assert float(nothing.mse_cdf(1e9)) == 0.0
    assert (nothing.expected_mse, nothing.expected_psnr, nothing.ncc_bound) == (math.inf, -math.inf, 0.0)
    everything = from_scratch_attack(ledger((0.0, 0.1, 1)), 3)
    assert float(everything.mse_cdf(0.0)) == 1.0
    assert (everything.expected_mse, everything.expected_psnr, everything.ncc_bound) == (0.0, math.inf, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: FromScratchAttack(-1.0, 3),
        lambda: FromScratchAttack(math.nan, 3),
        lambda: FromScratchAttack(1.0, 0),
        lambda: FromScratchAttack(1.0, True),
        lambda: FromScratchAttack(1.0, 3, -1.0),
        lambda: FromScratchAttack(1.0, 3, 1.0, 0.0),
        lambda: FromScratchAttack(1.0, 3).mse_cdf(-1.0),
        lambda: from_scratch_attack(ledger((1.0, 0.1, 5)), 3, observed=6),
        lambda: from_scratch_attack(ledger((1.0, 0.1, 5)), 3, observed=True),
        lambda: from_scratch_attack(ledger((1.0, 0.1, 5)), 3, observed="most"),  # type: ignore[arg-type]
        lambda: noise_multiplier_against_reconstruction(1.0, 0.1, 3),
        lambda: noise_multiplier_against_reconstruction(0.1, 0.0, 3),
        lambda: noise_multiplier_against_reconstruction(0.1, 0.1, 3, 0.0),
        lambda: risk_corridor([], dimension=3),
    ],
)
def test_bad_input_is_refused(call: object) -> None:
    with pytest.raises(PrivacyConfigError):
        call()  # type: ignore[operator]


# --- corridor ---------------------------------------------------------------------------------------------------------
def test_the_corridor() -> None:
    entries = ledger((1.0, 0.02, 300))
    corridor = risk_corridor(entries, dataset_size=1000, dimension=12, data_norm=3.0, mse=0.5)
    worst, relaxed, scratch = corridor.rows()
    assert corridor.kappa == 1e-3 < relaxed.probability < worst.probability == corridor.worst_case.gamma
    assert worst.probability == pytest.approx(0.004874, rel=1e-3)
    assert [row.is_guarantee for row in (worst, relaxed, scratch)] == [True, False, False]
    assert all("not a differential-privacy guarantee" in row.meaning for row in (relaxed, scratch))
    assert scratch.probability == pytest.approx(float(FromScratchAttack(6**-0.5, 12, 3.0).mse_cdf(0.5)))
    assert risk_corridor(entries, kappa=0.1).attack is None
    assert len(risk_corridor(entries, kappa=0.1).rows()) == 2
    guess = risk_corridor(entries, kappa=0.1, dimension=12, data_norm=3.0)
    assert guess.mse == 0.75
    for empty in ([], ledger((0.0, 0.1, 2))):
        rows = risk_corridor(empty, kappa=0.1, dimension=12).rows()
        assert [row.probability for row in rows] == ([1.0, 1.0, 1.0] if empty else [0.1, 0.1, 0.0])

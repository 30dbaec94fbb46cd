from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from lightning_dp.accounting import GaussianEvent, LedgerEntry, TradeOffCurve, get_accountant
from lightning_dp.errors import PrivacyConfigError


def curve(*events: tuple[float, float, int]) -> TradeOffCurve:
    return TradeOffCurve([LedgerEntry(GaussianEvent(sigma, q), steps) for sigma, q, steps in events])


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "fpr", "expected"),
    [
        # Exact by an independent transform, with an error of 3e-5 for 1000 steps and 1e-6 otherwise.
        (1.0, 0.01, 1000, 0.1, 0.194200),
        (1.0, 0.01, 1000, 0.01, 0.029139),
        (0.6, 0.01, 1000, 0.1, 0.417230),
        (2.0, 0.1, 100, 0.1, 0.227590),
        (2.0, 0.1, 100, 0.001, 0.005680),
        (1.0, 0.1, 100, 0.1, 0.469186),
        (4.0, 0.5, 50, 0.1, 0.347793),
        (0.5, 0.001, 1000, 0.1, 0.147255),
        (1.0, 0.02, 300, 0.001, 0.004874),
    ],
)
def test_power_against_composed_subsampled_gaussians(
    sigma: float, q: float, steps: int, fpr: float, expected: float
) -> None:
    power = float(curve((sigma, q, steps)).tpr(fpr))
    assert expected - 3e-5 <= power <= expected * 1.003 + 3e-5


@pytest.mark.parametrize(
    ("fpr", "mu", "expected"),
    [
        (0.1, 0.5, 0.217239),
        (0.1, 1.0, 0.389144),
        (1 / 13, 1.0, 0.335026),
        (0.1, 2.0, 0.763760),
        (0.01, 1.0, 0.092362),
    ]
    + [(0.01, 2.0, 0.372081), (1e-3, 3.0, 0.464051), (1e-6, 4.0, 0.225597), (0.5, 1.0, 0.841345)],
)
def test_power_without_amplification_is_the_exact_gaussian_one(fpr: float, mu: float, expected: float) -> None:
    assert float(curve((2.0 / mu, 1.0, 4)).tpr(fpr)) == pytest.approx(expected, abs=6e-7)


def test_one_subsampled_step_is_the_mixture() -> None:
    """Removal: power q Phi(Phi^-1(fpr) + mu) + (1 - q) fpr; adding: its inverse; the stronger counts."""
    fpr, mu, q = np.array([0.001, 0.05, 0.3, 0.7]), 2.0, 0.3
    removal = q * ndtr(ndtri(fpr) + mu) + (1.0 - q) * fpr
    power = curve((1.0 / mu, q, 1)).tpr(fpr)
    assert np.all(power >= removal - 1e-9)
    grid = np.linspace(1e-9, 1.0 - 1e-9, 400_001)
    missed = 1.0 - (q * ndtr(ndtri(grid) + mu) + (1.0 - q) * grid)
    adding = 1.0 - np.interp(fpr, missed[::-1], grid[::-1])
    np.testing.assert_allclose(power, np.maximum(removal, adding), atol=2e-3)
    assert np.all(power >= np.maximum(removal, adding) - 1e-6)


def test_simulated_likelihood_ratio_attack_stays_below_the_curve() -> None:
    """The best attack on 40 steps, 100,000 runs a side; false alarms below 1e-6 at five standard errors."""
    rng, sigma, q, runs = np.random.default_rng(3), 1.0, 0.1, 100_000
    scores = []
    for member in (False, True):
        total = np.zeros(runs)
        for _ in range(40):
            x = sigma * rng.standard_normal(runs) + ((rng.random(runs) < q) if member else 0.0)
            total += np.log1p(q * np.expm1((2.0 * x - 1.0) / (2.0 * sigma**2)))
        scores.append(total)
    bound = curve((sigma, q, 40))
    for fpr in (0.01, 0.1, 0.5):
        tpr = float(np.mean(scores[1] > np.quantile(scores[0], 1.0 - fpr)))
        error = 5.0 * math.sqrt(0.25 / runs) + 5.0 * math.sqrt(fpr / runs) * 3.0
        assert tpr - error <= float(bound.tpr(fpr)) <= tpr + error + 5e-3


@pytest.mark.parametrize("events", [[(1.0, 0.05, 200)], [(1.0, 0.05, 50), (3.0, 1.0, 2)], [(1e-4, 0.01, 1000)]])
def test_shape_of_the_curve(events: list[tuple[float, float, int]]) -> None:
    bound = curve(*events)
    alpha, beta = bound.points()
    assert alpha.shape == beta.shape
    assert np.all(np.diff(beta) <= 1e-12)
    assert np.all(beta <= 1.0 - alpha + 1e-12)
    assert np.all(beta >= 0.0)
    advantage = float(np.max(bound.tpr(alpha) - alpha))
    entries = [LedgerEntry(GaussianEvent(sigma, q), steps) for sigma, q, steps in events]
    assert advantage <= bound.membership_advantage + 1e-9
    assert bound.membership_advantage == pytest.approx(get_accountant("pld").delta(entries, 0.0), rel=1e-9)
    # The published line of (eps, delta) is one of the curve's supporting lines.
    eps = get_accountant("pld").epsilon(entries, 1e-5)
    if eps < 100.0:
        assert np.all(bound.tpr(alpha) <= math.exp(eps) * alpha + 1e-5 + 1e-3)


def test_the_teaser_pair_of_mechanisms_with_one_eps_and_two_risks() -> None:
    """Kaiser et al. 2026: both calibrated to (2, 0.08), attacked with different success."""
    assert curve((0.6543, 0.1, 10)).membership_advantage == pytest.approx(0.236885, rel=2e-3)
    assert curve((2.4072, 0.8, 10)).membership_advantage == pytest.approx(0.398987, rel=2e-3)


def test_the_ends() -> None:
    nothing, everything = TradeOffCurve([]), curve((0.0, 0.1, 1))
    np.testing.assert_allclose(nothing.tpr([0.0, 0.3, 1.0]), [0.0, 0.3, 1.0])
    assert nothing.membership_advantage == 0.0
    np.testing.assert_array_equal(everything.tpr([0.0, 0.3]), [1.0, 1.0])
    assert everything.membership_advantage == 1.0
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(PrivacyConfigError, match="alpha"):
            nothing.beta(bad)

"""Closed forms against the reference table, the definition of a test's power, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import laplace

from lightning_dp.accounting import dp_gamma, gaussian_gamma, kappa_of, laplace_gamma, subsampled_gamma
from lightning_dp.errors import PrivacyConfigError

CHANCES = st.floats(0.0, 1.0)
MUS = st.floats(0.0, 1e6)


@pytest.mark.parametrize(
    ("kappa", "mu", "gamma"),
    [
        (0.1, 0.5, 0.217239),
        (0.1, 1.0, 0.389144),
        (1 / 13, 1.0, 0.335026),
        (0.1, 2.0, 0.763760),
        (0.01, 1.0, 0.092362),
        (0.01, 2.0, 0.372081),
        (1e-3, 3.0, 0.464051),
        (1e-6, 4.0, 0.225597),
        (0.5, 1.0, 0.841345),
    ],
)
def test_gaussian_table(kappa: float, mu: float, gamma: float) -> None:
    assert float(gaussian_gamma(kappa, mu)) == pytest.approx(gamma, abs=6e-7)


@pytest.mark.parametrize(
    ("kappa", "eps", "gamma"),
    [
        (0.1, 0.5, 0.164872),
        (0.1, 1.0, 0.271828),
        (0.01, 2.0, 0.073891),
        (0.3, 1.0, 0.693434),
        (0.6, 1.0, 0.852848),
        (0.001, 3.0, 0.020086),
        (0.1, 3.0, 0.875532),
    ],
)
def test_laplace_table(kappa: float, eps: float, gamma: float) -> None:
    assert float(laplace_gamma(kappa, eps)) == pytest.approx(gamma, abs=6e-7)


@pytest.mark.parametrize(
    ("kappa", "mu", "rate", "gamma"),
    [(0.1, 1.0, 0.1, 0.128914), (0.01, 2.0, 0.5, 0.191040), (0.1, 1 / 0.6, 0.01, 0.105499)],
)
def test_one_subsampled_step_table(kappa: float, mu: float, rate: float, gamma: float) -> None:
    assert float(subsampled_gamma(kappa, mu, rate)) == pytest.approx(gamma, abs=6e-7)


@given(CHANCES, st.floats(0.0, 30.0))
def test_laplace_is_the_power_of_the_best_threshold(kappa: float, eps: float) -> None:
    """The likelihood ratio of Laplace(eps) and Laplace(0) grows with the output, so the best test is a threshold."""
    power = laplace.sf(laplace.isf(kappa), loc=eps) if 0.0 < kappa < 1.0 else kappa
    assert float(laplace_gamma(kappa, eps)) == pytest.approx(float(power), rel=1e-9, abs=1e-15)


@given(CHANCES, MUS, st.floats(1e-9, 1.0))
def test_between_the_blind_guess_and_one_and_below_the_pure_bounds(kappa: float, mu: float, rate: float) -> None:
    gamma = float(gaussian_gamma(kappa, mu))
    assert kappa <= float(subsampled_gamma(kappa, mu, rate)) <= gamma + 1e-15 <= 1.0 + 1e-15
    eps = min(mu, 700.0)
    assert kappa <= float(laplace_gamma(kappa, eps)) <= float(dp_gamma(kappa, eps)) + 1e-12


@given(st.floats(1e-12, 1 - 1e-9), st.floats(0.0, 20.0), st.floats(0.0, 20.0))
def test_monotone_and_a_semigroup(kappa: float, mu: float, more: float) -> None:
    """Phi^-1(gamma) is shifted by mu, so two attacks in a row shift by the sum."""
    once = float(gaussian_gamma(kappa, mu))
    assert once <= float(gaussian_gamma(kappa, mu + more)) + 1e-15
    if once < 1 - 1e-9:
        assert float(gaussian_gamma(once, more)) == pytest.approx(float(gaussian_gamma(kappa, mu + more)), rel=1e-6)


def test_ends() -> None:
    assert float(gaussian_gamma(0.3, 0.0)) == 0.3
    assert float(gaussian_gamma(0.3, math.inf)) == float(subsampled_gamma(0.3, math.inf, 1.0)) == 1.0
    np.testing.assert_array_equal(gaussian_gamma([0.0, 1.0], 3.0), [0.0, 1.0])
    np.testing.assert_array_equal(laplace_gamma([0.0, 1.0], 1e9), [0.0, 1.0])
    np.testing.assert_array_equal(dp_gamma([0.0, 1.0], 1e9), [0.0, 1.0])
    assert float(dp_gamma(0.0, 1.0, 0.25)) == 0.25
    assert float(laplace_gamma(1e-300, 1e9)) == 1.0
    assert float(subsampled_gamma(0.1, math.inf, 0.25)) == pytest.approx(0.25 + 0.75 * 0.1)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_simulation(mechanism: str) -> None:
    """10^6 draws: false alarms below 1e-8 for the distance of six standard errors (Bernoulli)."""
    generator, kappa = np.random.default_rng(5), 0.1
    draws = generator.normal(size=10**6) if mechanism == "gaussian" else generator.laplace(size=10**6)
    threshold = 1.2815515655446004 if mechanism == "gaussian" else -math.log(2 * kappa)
    gamma = float((gaussian_gamma if mechanism == "gaussian" else laplace_gamma)(kappa, 1.0))
    share = float(np.mean(draws + 1.0 > threshold))
    assert abs(share - gamma) < 6 * math.sqrt(gamma * (1 - gamma) / 1e6)


def test_kappa_of() -> None:
    assert kappa_of(None, 1000) == 1e-3
    assert kappa_of(0.25, 1000) == kappa_of(0.25, None) == 0.25
    for kappa, n in ((None, None), (None, 0), (1.5, 10), (math.nan, 10), (-0.1, 10)):
        with pytest.raises(PrivacyConfigError, match="kappa"):
            kappa_of(kappa, n)


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_gamma(1.1, 1.0),
        lambda: gaussian_gamma(math.nan, 1.0),
        lambda: gaussian_gamma(0.1, -1.0),
        lambda: gaussian_gamma(0.1, math.nan),
        lambda: laplace_gamma(0.1, -1.0),
        lambda: laplace_gamma(0.1, math.inf),
        lambda: subsampled_gamma(0.1, 1.0, 0.0),
        lambda: dp_gamma(0.1, 1.0, 1.5),
    ],
)
def test_bad_input_is_refused(call: object) -> None:
    with pytest.raises(PrivacyConfigError):
        call()  # type: ignore[operator]

"""The relaxed adversary against the reference table, simulation, and the worst case."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    gaussian_gamma,
    glrt_power,
    glrt_reverse_power,
    relaxed_risk,
)
from lightning_dp.errors import PrivacyConfigError


def ledger(*events: tuple[float, float, int]) -> list[LedgerEntry]:
    return [LedgerEntry(GaussianEvent(sigma, rate), steps) for sigma, rate, steps in events]


@pytest.mark.parametrize(
    ("dimension", "mu", "alpha", "forward", "reverse", "worst"),
    [
        (1, 1, 0.1, 0.263597, 0.163711, 0.389144),
        (1, 1, 0.01, 0.057707, 0.016486, 0.092362),
        (1, 2, 0.1, 0.638894, 0.538252, 0.763760),
        (1, 2, 0.01, 0.282368, 0.073474, 0.372081),
        (1, 3, 0.001, 0.385707, 0.088378, 0.464051),
        (2, 1, 0.1, 0.217654, 0.158165, None),
        (10, 1, 0.1, 0.149442, 0.134556, None),
        (10, 3, 0.01, 0.259993, 0.155820, 0.749734),
        (100, 3, 0.01, 0.047862, 0.038453, None),
        (1000, 3, 0.01, 0.017026, 0.016480, None),
        (10000, 5, 0.01, 0.015859, 0.015713, 0.996248),
    ],
)
def test_power_table(
    dimension: int, mu: float, alpha: float, forward: float, reverse: float, worst: float | None
) -> None:
    assert float(glrt_power(alpha, mu, dimension)) == pytest.approx(forward, abs=6e-7)
    assert float(glrt_reverse_power(alpha, mu, dimension)) == pytest.approx(reverse, abs=6e-7)
    risk = relaxed_risk(ledger((1.0 / mu, 1.0, 1)), alpha, dimension)
    assert risk.gamma == pytest.approx(forward, abs=6e-7)
    if worst is not None:
        assert risk.worst_case.gamma == pytest.approx(worst, abs=6e-7)


@pytest.mark.parametrize(
    ("dimension", "mu", "auc", "advantage", "eps"),
    [
        (1, 1, 0.635460, 0.206744, 3.6841),
        (1, 2, 0.855072, 0.565552, 9.3041),
        (2, 1, 0.610600, 0.163388, 2.8555),
        (10, 1, 0.558938, 0.084192, 1.2029),
        (100, 1, 0.519793, 0.028020, 0.2727),
        (10, 3, 0.858989, 0.556302, 9.6715),
        (100, 3, 0.666690, 0.239548, 2.9883),
        (1000, 3, 0.556316, 0.079782, 0.7700),
    ],
)
def test_curve_table(dimension: int, mu: float, auc: float, advantage: float, eps: float) -> None:
    alpha = np.concatenate((np.logspace(-9, -3, 4001), np.linspace(1e-3, 1.0, 8001)[1:]))
    power = glrt_power(alpha, mu, dimension)
    assert float(np.trapezoid(power, alpha)) == pytest.approx(auc, abs=1e-6)
    assert float(np.max(power - alpha)) == pytest.approx(advantage, abs=1e-6)
    seen = power > 1e-5
    assert float(np.max(np.log((power[seen] - 1e-5) / alpha[seen]))) == pytest.approx(eps, abs=2e-4)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "kappa", "exact", "worst"),
    [
        (1.0, 0.01, 1000, 0.1, 0.148523, 0.194200),
        (0.6, 0.01, 1000, 0.1, 0.309845, 0.417230),
        (1.0, 0.1, 100, 0.1, 0.286467, 0.469186),
        (2.0, 0.1, 100, 0.1, 0.136494, 0.227590),
        (1.0, 0.1, 100, 0.001, 0.011458, 0.038782),
    ],
)
def test_subsampled_table(sigma: float, rate: float, steps: int, kappa: float, exact: float, worst: float) -> None:
    """Pessimistic grid: from above, by up to 5e-4 of the value (the table's own grid error is 3e-5)."""
    risk = relaxed_risk(ledger((sigma, rate, steps)), kappa)
    assert exact - 3e-5 <= risk.gamma <= exact * (1 + 5e-4) + 3e-5
    assert risk.worst_case.gamma == pytest.approx(worst, abs=5e-5)
    assert not risk.is_guarantee
    assert "NOT a guarantee" in str(risk)
    assert f"{risk.worst_case.gamma:.4g}" in str(risk)


def test_the_simulated_subsampled_adversary() -> None:
    """Squared outputs, likelihood ratio summed; six standard errors of 40000 runs: false alarms below 1e-7."""
    generator, runs, sigma, rate, steps = np.random.default_rng(3), 40_000, 0.7, 0.05, 60
    sums = {}
    for with_unit in (False, True):
        drawn = generator.random((steps, runs)) < (rate if with_unit else 0.0)
        z = generator.standard_normal((steps, runs)) + drawn / sigma
        ratio = 1 - rate + rate * np.exp(-0.5 / sigma**2) * np.cosh(z / sigma)
        sums[with_unit] = np.log(ratio).sum(0)
    for kappa in (0.05, 0.3):
        power = float(np.mean(sums[True] > np.quantile(sums[False], 1 - kappa)))
        slack = 6 * math.sqrt(kappa * (1 - kappa) / runs)
        low, high = (relaxed_risk(ledger((sigma, rate, steps)), kappa + s).gamma for s in (-slack, slack))
        # The reverse test counts as well where it is better, which only raises the number.
        assert low - 6 * math.sqrt(0.25 / runs) < power < high + 6 * math.sqrt(0.25 / runs)


@given(st.floats(0.2, 50.0), st.floats(1e-4, 1.0), st.integers(1, 40), st.floats(1e-6, 0.999))
@settings(max_examples=5, deadline=None)
def test_never_above_the_worst_case_and_never_below_a_guess(
    sigma: float, rate: float, steps: int, kappa: float
) -> None:
    risk = relaxed_risk(ledger((sigma, rate, steps)), kappa)
    assert kappa <= risk.gamma <= risk.worst_case.gamma <= 1.0


@given(st.floats(1e-9, 1.0), st.floats(0.0, 30.0), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_more_dimensions_hide_more(alpha: float, mu: float, dimension: int) -> None:
    here = float(glrt_power(alpha, mu, dimension))
    assert alpha <= here <= float(gaussian_gamma(alpha, mu))
    assert here >= float(glrt_power(alpha, mu, dimension + 1)) - 1e-9
    assert here <= float(glrt_power(alpha, 1.1 * mu, dimension)) + 1e-9
    assert alpha <= float(glrt_reverse_power(alpha, mu, dimension)) <= float(gaussian_gamma(alpha, mu)) + 1e-12


@given(st.floats(1e-9, 1.0), st.floats(0.0, 1e4))
def test_one_dimension_is_the_two_sided_test(alpha: float, mu: float) -> None:
    z = -ndtri(alpha / 2)
    assert float(glrt_power(alpha, mu)) == pytest.approx(float(ndtr(mu - z) + ndtr(-mu - z)), rel=1e-9, abs=1e-15)


def test_limits() -> None:
    for entries in ([], ledger((1e8, 0.1, 10)), ledger((1e8, 1.0, 10))):
        assert relaxed_risk(entries, 0.1).gamma == pytest.approx(0.1, abs=1e-6)
    for entries in (ledger((0.0, 0.1, 1)), ledger((1e-6, 1.0, 1))):
        assert relaxed_risk(entries, 0.1).gamma == 1.0
    assert float(glrt_power(0.1, 0.0, 7)) == float(glrt_reverse_power(0.1, 0.0, 7)) == 0.1
    assert float(glrt_power(0.1, 1e9, 3)) == 1.0
    # No grid for this little noise: the worst case stands in, and says so.
    tiny = relaxed_risk(ledger((1e-5, 0.01, 100)), 0.1)
    assert tiny.gamma == tiny.worst_case.gamma
    assert "worst case is given" in tiny.convention


def test_a_sum_of_full_steps_is_searched_in_as_many_dimensions_as_asked_for() -> None:
    entries = ledger((4.0, 1.0, 16))
    assert relaxed_risk(entries, 0.1, 10).gamma == pytest.approx(0.149442, abs=6e-7)
    with pytest.raises(PrivacyConfigError, match="dimension=10"):
        relaxed_risk(ledger((4.0, 0.5, 16)), 0.1, 10)


@pytest.mark.parametrize(
    ("alpha", "mu", "dimension"), [(1.1, 1, 1), (0.1, -1, 1), (0.1, math.inf, 1), (0.1, 1, 0), (0.1, 1, 1.5)]
)
def test_bad_input_is_refused(alpha: float, mu: float, dimension: float) -> None:
    for power in (glrt_power, glrt_reverse_power):
        with pytest.raises(PrivacyConfigError):
            power(alpha, mu, dimension)  # type: ignore[arg-type]

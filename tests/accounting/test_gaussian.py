from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from lightning_dp.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_the_integral_of_the_positive_part(mu: float, eps: float) -> None:
    crossing = eps / mu + mu / 2.0
    truth, _ = integrate.quad(
        lambda x: stats.norm.pdf(x, mu) - math.exp(eps) * stats.norm.pdf(x), crossing, mu + 40.0, epsabs=1e-13
    )
    assert float(gaussian_delta(mu, eps)) == pytest.approx(truth, abs=1e-11)
    assert float(gaussian_delta(mu, eps)) >= truth - 1e-12


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("delta", [1e-300, 1e-30, 1e-10, 1e-5, 0.1, 0.9])
def test_epsilon_and_delta_are_inverse_over_the_whole_range(mu: float, delta: float) -> None:
    eps = gaussian_epsilon(mu, delta)
    assert math.isfinite(eps)
    if eps == 0.0:
        assert float(gaussian_delta(mu, 0.0)) <= delta
        return
    # The quotient eps / mu keeps some ulp of mu, so compare on the scale on which delta changes.
    nudge = max(1e-9 * eps, 1e-14 * mu * mu, 1e-9 * mu)
    assert float(gaussian_delta(mu, eps + nudge)) <= delta * (1.0 + 1e-5)
    assert float(gaussian_delta(mu, max(0.0, eps - nudge))) >= delta * (1.0 - 1e-5)


def test_the_ends() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert float(gaussian_delta(0.0, 0.0)) == 0.0
    np.testing.assert_array_equal(gaussian_delta(np.array([0.0, 1e9]), 0.0), [0.0, 1.0])


@pytest.mark.parametrize(("eps", "delta"), [(0.0, 1e-5), (0.01, 1e-5), (1.0, 1e-5), (8.0, 1e-9), (1e6, 1e-5)])
def test_the_largest_index_meets_its_budget(eps: float, delta: float) -> None:
    mu = gaussian_mu(eps, delta)
    assert float(gaussian_delta(mu, eps)) <= delta
    assert float(gaussian_delta(mu * (1 + 1e-9), eps)) > delta * (1 - 1e-12)

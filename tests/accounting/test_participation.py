from __future__ import annotations

import math

import pytest
from scipy import stats

from lightning_dp.accounting.gaussian import gaussian_delta
from lightning_dp.accounting.participation import participation_delta, participation_epsilon
from lightning_dp.accounting.profile import profile_add, profile_remove


@pytest.mark.parametrize(("sigma", "q", "steps"), [(0.5, 0.1, 20), (2.0, 0.7, 13), (0.05, 0.01, 100), (1.0, 0.5, 1)])
@pytest.mark.parametrize("eps", [0.0, 1.0, 30.0])
def test_the_bound_is_the_plain_sum_over_counts(sigma: float, q: float, steps: int, eps: float) -> None:
    plain = sum(
        stats.binom.pmf(k, steps, q) * float(gaussian_delta(math.sqrt(0.25 + k) / sigma, eps)) for k in range(steps + 1)
    )
    bound = participation_delta(eps, sigma=sigma, q=q, steps=steps, mu=0.5 / sigma)
    assert bound == pytest.approx(plain, rel=1e-7)
    assert bound >= plain * (1.0 - 1e-12)


@pytest.mark.parametrize("q", [0.01, 0.5])
@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_one_step_is_bounded_in_both_directions(q: float, eps: float) -> None:
    bound = participation_delta(eps, sigma=0.7, q=q, steps=1)
    assert bound >= float(profile_remove(0.7, q, eps)[0])
    assert bound >= float(profile_add(0.7, q, eps)[0])


@pytest.mark.parametrize(("q", "steps"), [(0.01, 1000), (0.5, 10**6), (1e-6, 10**6), (0.999, 50)])
def test_many_counts_are_lumped_from_above(q: float, steps: int) -> None:
    """With next to no noise, eps is the (1 - delta)-quantile of the counts over 2 sigma^2."""
    sigma, delta = 1e-5, 1e-4
    count = float(stats.binom.isf(delta, steps, q))
    eps = participation_epsilon(delta, sigma=sigma, q=q, steps=steps)
    assert participation_delta(eps, sigma=sigma, q=q, steps=steps) <= delta
    assert 0.5 * count / sigma**2 * 0.999 <= eps <= 0.5 * (count * 1.005 + 1) / sigma**2


def test_a_delta_above_the_chance_of_taking_part_needs_no_noise() -> None:
    assert participation_epsilon(1e-2, sigma=1e-6, q=1e-6, steps=1000) == 0.0
    assert participation_epsilon(1e-4, sigma=1e-6, q=1e-6, steps=1000) > 1e9

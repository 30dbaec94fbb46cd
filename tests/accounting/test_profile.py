from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_mechanism as reference
from scipy import integrate, stats

from lightning_dp.accounting.profile import profile_add, profile_remove


def hockey_stick(sigma: float, q: float, eps: float, remove: bool) -> float:
    """The integral of the positive part, in sixteen pieces round the point where the densities cross."""

    def difference(x: float) -> float:
        without = stats.norm.pdf(x, 0.0, sigma)
        with_unit = (1.0 - q) * without + q * stats.norm.pdf(x, 1.0, sigma)
        upper, lower = (with_unit, without) if remove else (without, with_unit)
        return max(0.0, float(upper - math.exp(eps) * lower))

    cuts = np.linspace(-12.0 * sigma, 1.0 + 12.0 * sigma, 17)
    return sum(
        integrate.quad(difference, a, b, epsabs=1e-12, limit=200)[0] for a, b in zip(cuts, cuts[1:], strict=False)
    )


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize(("sigma", "q"), [(1.0, 0.01), (0.6, 0.3), (2.0, 0.9), (1.0, 1.0)])
@pytest.mark.parametrize("eps", [-0.5, -0.004, 0.0, 0.004, 0.2, 1.0])
def test_the_profile_is_the_integral_of_the_positive_part(remove: bool, sigma: float, q: float, eps: float) -> None:
    profile = profile_remove if remove else profile_add
    assert profile(sigma, q, eps)[0] == pytest.approx(hockey_stick(sigma, q, eps, remove), abs=2e-9)


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize(("sigma", "q"), [(1.0, 0.01), (0.3, 0.0005), (20.0, 0.5), (0.05, 0.1), (0.8, 1.0)])
def test_the_profile_agrees_with_dp_accounting(remove: bool, sigma: float, q: float) -> None:
    adjacency = reference.AdjacencyType.REMOVE if remove else reference.AdjacencyType.ADD
    mechanism = reference.GaussianPrivacyLoss(sigma, sampling_prob=q, adjacency_type=adjacency)
    eps = np.linspace(-3.0, 6.0, 181)
    profile = profile_remove if remove else profile_add
    np.testing.assert_allclose(profile(sigma, q, eps), mechanism.get_delta_for_epsilon(eps), atol=1e-13)

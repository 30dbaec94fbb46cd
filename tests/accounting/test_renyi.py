from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import rdp_privacy_accountant as reference
from opacus.accountants.analysis.rdp import compute_rdp

from lightning_dp.accounting import GaussianEvent, LedgerEntry
from lightning_dp.accounting.gaussian import gaussian_epsilon
from lightning_dp.accounting.renyi import ORDERS, rdp_delta, rdp_epsilon, rdp_of_entries, rdp_step


@pytest.mark.parametrize(
    ("sigma", "q"), [(0.6, 0.0005), (1.1, 0.01), (0.3, 0.01), (0.1, 0.02), (2.0, 0.4), (20.0, 0.9)]
)
def test_divergences_agree_with_opacus_at_whole_and_broken_orders(sigma: float, q: float) -> None:
    chosen = [1.1, 1.5, 2.0, 2.7, 5.5, 9.3, 17.0, 64.0]
    mine = np.array([rdp_step(sigma, q)[np.flatnonzero(order == ORDERS)[0]] for order in chosen])
    truth = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=chosen)
    np.testing.assert_allclose(mine, truth, rtol=1e-6)
    assert np.all(mine >= np.asarray(truth) * (1.0 - 1e-9))


@pytest.mark.parametrize(("sigma", "q", "steps"), [(1.0, 0.01, 1000), (0.8, 0.004, 10_000), (3.0, 0.1, 300)])
def test_epsilon_and_delta_agree_with_dp_accounting(sigma: float, q: float, steps: int) -> None:
    peer = reference.RdpAccountant(orders=[float(order) for order in ORDERS])
    peer.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma)), steps)
    rdp = rdp_of_entries([LedgerEntry(GaussianEvent(sigma, q), steps)])
    # dp-accounting adds up the absolute values of an alternating series at broken orders: a little more,
    # never less.
    assert 0.9999 <= rdp_epsilon(rdp, 1e-5) / peer.get_epsilon(1e-5) <= 1.0 + 1e-9
    assert 0.999 <= rdp_delta(rdp, 5.0) / peer.get_delta(5.0) <= 1.0 + 1e-9
    few = (ORDERS > 1.2) & (ORDERS < 64)
    opacus = np.full_like(ORDERS, math.inf)
    opacus[few] = compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=ORDERS[few].tolist())
    assert rdp_epsilon(rdp, 1e-5) == pytest.approx(rdp_epsilon(opacus, 1e-5), rel=1e-6)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.05, 0.0801, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("q", [1e-6, 0.01, 0.5, 0.999, 1.0])
def test_divergences_are_finite_ordered_and_below_those_without_sampling(sigma: float, q: float) -> None:
    rdp = rdp_step(sigma, q)[np.argsort(ORDERS)]
    orders = np.sort(ORDERS)
    assert np.all(np.isfinite(rdp))
    assert np.all(rdp >= 0.0)
    # D_alpha grows with alpha, and (alpha - 1) D_alpha is convex with value 0 at alpha = 1.
    assert np.all(np.diff(rdp) >= -1e-9 * np.abs(rdp[1:]) - 1e-11)
    assert np.all(rdp <= orders / 2.0 / sigma / sigma * (1.0 + 1e-9))


def test_without_sampling_the_bound_lies_above_the_exact_gaussian() -> None:
    for mu in (0.1, 1.0, 5.0, 30.0):
        for delta in (1e-3, 1e-5, 1e-9):
            assert rdp_epsilon(rdp_step(1.0 / mu, 1.0), delta) >= gaussian_epsilon(mu, delta)


def test_no_noise_is_no_privacy() -> None:
    assert math.isinf(rdp_epsilon(rdp_step(0.0, 0.1), 1e-5))
    assert rdp_delta(rdp_step(0.0, 0.1), 1.0) == 1.0

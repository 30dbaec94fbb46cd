"""The mechanism on its own: bounds for any input, moments, frequencies, and an attack that must not succeed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lightning_dp.accounting import LedgerEntry, RandomizedResponseEvent, TradeOffCurve, release_event
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import NoiseSource
from lightning_dp.strategies.neural.privatise import clip_rows, privatise_rows, randomise_labels


# --- clipping ---------------------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=6, max_size=6),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.floats(1e-6, 1e6),
)
def test_no_row_is_longer_than_the_bound(values: list[float], dtype: torch.dtype, bound: float) -> None:
    rows = torch.tensor(values, dtype=torch.float64).to(dtype).view(2, 3)
    clipped = clip_rows(rows, bound)
    assert clipped.dtype == torch.float32
    assert bool(torch.isfinite(clipped).all())
    assert bool((clipped.double().norm(dim=1) <= bound).all())


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e30, 1e200, 1.7e308])
def test_long_rows_reach_the_bound_and_short_ones_stay(scale: float) -> None:
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * min(scale, 4e307)
    clipped = clip_rows(row, 1.0).double()
    expected = row if float(row[0, 0]) < 0.1 else torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(clipped, expected, rtol=1e-6, atol=1e-44)


def test_a_row_that_is_not_finite_is_zero_and_touches_no_other() -> None:
    rows = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0], [0.3, 0.4]])
    torch.testing.assert_close(clip_rows(rows, 1.0), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.3, 0.4]]))


def test_shapes_are_kept_and_empty_batches_pass() -> None:
    assert clip_rows(torch.ones(2, 3, 4, 5), 1.0).shape == (2, 3, 4, 5)
    assert clip_rows(torch.ones(4), 0.5).tolist() == pytest.approx([0.5] * 4, rel=1e-6)
    assert clip_rows(torch.ones(0, 7), 1.0).shape == (0, 7)


# --- noise ------------------------------------------------------------------------------------------------------------
def test_mean_and_covariance_of_a_release() -> None:
    """E = the clipped row, covariance sigma^2 C^2 I: 200 000 draws of three coordinates, each moment within 5 standard errors.

    The chance of a false alarm over the nine moments is below 1e-5.
    """
    draws, sigma, bound = 200_000, 1.5, 2.0
    row = torch.tensor([[3.0, 0.0, -4.0]])
    released = privatise_rows(row.repeat(draws, 1), bound, sigma, NoiseSource(seed=3)).double()
    std = sigma * bound
    error = (released.mean(0) - clip_rows(row, bound)[0].double()).abs()
    assert bool((error < 5 * std / math.sqrt(draws)).all())
    covariance = torch.cov(released.T)
    expected = std**2 * torch.eye(3, dtype=torch.float64)
    allowed = 5 * std**2 * math.sqrt(2 / draws) * torch.ones(3, 3, dtype=torch.float64)
    assert bool(((covariance - expected).abs() < allowed).all())


def test_two_sources_and_two_releases_share_no_noise() -> None:
    row = torch.zeros(2, 1000)
    one, other = (privatise_rows(row, 1.0, 1.0, NoiseSource()) for _ in range(2))
    together = torch.cat([one, other])
    correlation = torch.corrcoef(together) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / math.sqrt(1000)  # 5 standard errors


# --- the attack -------------------------------------------------------------------------------------------------------
def attacked(released: Tensor, member: Tensor, other: Tensor) -> Tensor:
    """The best statistic there is: the log-likelihood ratio of two known candidates."""
    return (released.double() @ (member - other).double()).flatten()


@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_no_attack_on_releases_beats_its_bound(sigma: float) -> None:
    """Replace-one: which of two opposite vectors was released? 200 000 games a side at three false-positive rates.

    The rates are taken at thresholds fixed in advance; each confidence limit (Clopper-Pearson) is one-sided at 1e-6, so that
    the test fails by chance less than once in 10^5 runs. And the attack comes close, or the test would show nothing.
    """
    games, mu = 200_000, 2.0 / sigma
    member, other = torch.tensor([[1e9, 0.0, 0.0]]), torch.tensor([[-1e9, 0.0, 0.0]])
    noise = NoiseSource(seed=11)
    scores = [
        attacked(
            privatise_rows(row.repeat(games, 1), 1.0, sigma, noise), clip_rows(member, 1.0)[0], clip_rows(other, 1.0)[0]
        )
        for row in (member, other)
    ]
    curve = TradeOffCurve([LedgerEntry(release_event(sigma, "replace_one"), 1)])
    for fpr in (0.001, 0.01, 0.1):
        threshold = 2 * (-1.0 - sigma * stats.norm.ppf(fpr))
        hits, alarms = (int((score > threshold).sum()) for score in scores)
        most_false = stats.beta.ppf(1 - 1e-6, alarms + 1, games - alarms)
        least_true = stats.beta.ppf(1e-6, hits, games - hits + 1)
        assert least_true <= stats.norm.cdf(stats.norm.ppf(most_false) + mu)
        assert curve.tpr(fpr) == pytest.approx(stats.norm.cdf(stats.norm.ppf(fpr) + mu), rel=1e-9)
        assert stats.beta.ppf(1 - 1e-6, hits + 1, games - hits) > 0.9 * curve.tpr(fpr)


# --- labels -----------------------------------------------------------------------------------------------------------
def test_frequencies_of_randomised_labels() -> None:
    """Kept with e^eps / (e^eps + K - 1), else uniform over the others: chi-squared at 1e-5 on 200 000 labels each."""
    event, count = RandomizedResponseEvent(1.2, 5), 200_000
    for label in (0, 3, 4):
        found = randomise_labels(torch.full((count,), label), event, NoiseSource(seed=label))
        expected = np.full(5, (1 - event.keep) / 4)
        expected[label] = math.exp(1.2) / (math.exp(1.2) + 4)
        observed = torch.bincount(found, minlength=5).numpy()
        assert stats.chisquare(observed, expected * count).pvalue > 1e-5
        assert found.dtype == torch.int64


def test_labels_are_randomised_one_by_one() -> None:
    """Two labels of one batch are independent: the share of batches in which both are kept is keep^2 (5 standard errors)."""
    event, count = RandomizedResponseEvent(0.5, 3), 100_000
    found = randomise_labels(torch.zeros(2 * count, dtype=torch.int64), event, NoiseSource(seed=1)).view(count, 2)
    both, expected = float((found == 0).all(1).double().mean()), event.keep**2
    assert abs(both - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(3),
        torch.zeros(3, 2, dtype=torch.int64),
        torch.tensor([0, 3]),
        torch.tensor([-1]),
        torch.tensor([True]),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(PrivacyConfigError):
        randomise_labels(labels, RandomizedResponseEvent(1.0, 3), NoiseSource())


def test_no_labels_pass() -> None:
    assert randomise_labels(
        torch.zeros(0, dtype=torch.int64), RandomizedResponseEvent(1.0, 3), NoiseSource()
    ).shape == (0,)

"""The law of Langevin dynamics: reference values, and each of the three from the other two."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dp.accounting import LangevinLaw
from lightning_dp.errors import PrivacyConfigError

LAW = LangevinLaw(max_grad_norm=1.0, dataset_size=60_000, expected_batch_size=64)
VALUES = st.floats(1e-3, 1e3)


def test_reference_values() -> None:
    """Computed independently from the formula: six digits."""
    assert LAW.temperature(0.1, 1.1) == pytest.approx(0.886230, abs=5e-7)
    assert LAW.learning_rate(1.0, 1.1) == pytest.approx(0.112837, abs=5e-7)
    assert LAW.noise_multiplier(1.0, 0.1) == pytest.approx(64 * math.sqrt(2 / (0.1 * 60_000)))


@given(VALUES, VALUES, VALUES, st.integers(1, 10**6), st.integers(1, 10**5))
def test_any_two_give_the_third(rate: float, noise: float, bound: float, n: int, batch: int) -> None:
    law = LangevinLaw(bound, n, batch)
    temperature = law.temperature(rate, noise)
    assert law.learning_rate(temperature, noise) == pytest.approx(rate)
    assert law.noise_multiplier(temperature, rate) == pytest.approx(noise)


@given(VALUES, VALUES, VALUES)
def test_it_is_the_noise_of_the_step(rate: float, noise: float, bound: float) -> None:
    """A step of SGLD adds N(0, h Tmp) where h = 2 lr / n; a step of DP-SGD adds N(0, (lr sigma C / B)^2)."""
    law = LangevinLaw(bound, 500, 32)
    h = 2 * rate / 500
    assert h * law.temperature(rate, noise) == pytest.approx((rate * noise * bound / 32) ** 2)


def test_without_noise_the_temperature_is_zero() -> None:
    assert LAW.temperature(0.1, 0.0) == 0.0


def test_weight_decay_is_a_prior() -> None:
    """On the scale of a mean loss, -log N(w; 0, s^2) / n = w^2 / (2 n s^2), whose gradient is w / (n s^2)."""
    assert LAW.weight_decay(0.5) == pytest.approx(1 / (60_000 * 0.25))
    assert LAW.prior_scale(LAW.weight_decay(0.37)) == pytest.approx(0.37)
    assert LAW.prior_scale(0.0) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: LangevinLaw(0.0, 10, 2),
        lambda: LangevinLaw(1.0, 0, 2),
        lambda: LangevinLaw(1.0, 10, math.nan),
        lambda: LAW.learning_rate(1.0, 0.0),
        lambda: LAW.noise_multiplier(1.0, 0.0),
        lambda: LAW.weight_decay(-1.0),
    ],
)
def test_impossible_values_are_refused(call: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="positive, finite"):
        call()

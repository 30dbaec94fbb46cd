"""Two conventions for one noise: what an attacker on complex numbers achieves says which number accountants must get."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    NoiseConvention,
    SensitivityIndex,
    get_accountant,
    per_part_noise_multiplier,
)
from lightning_dp.errors import PrivacyConfigError

DELTA, ALARM = 1.3, 1e-6


def test_conventions_by_their_formulas() -> None:
    assert per_part_noise_multiplier(1.7) == per_part_noise_multiplier(1.7, "per_part") == 1.7
    assert per_part_noise_multiplier(1.7, "total") == pytest.approx(1.7 / 2**0.5)
    # psi = sqrt(2) Delta / tau; and of s = 0.9 on each part, Delta = 1.3, the power at a level of 5 %.
    assert 1 / per_part_noise_multiplier(1.0 / DELTA, "total") == pytest.approx(2**0.5 * DELTA / 1.0)
    assert SensitivityIndex(1 / per_part_noise_multiplier(0.9 / DELTA)).tpr(0.05) == pytest.approx(0.42058, abs=1e-5)


@pytest.mark.parametrize("convention", ["per_part", "total"])
def test_the_best_attack_on_complex_noise_has_the_power_that_the_index_says(convention: NoiseConvention) -> None:
    """A simulated likelihood-ratio test; a false alarm once in a million runs."""
    rng, n, std = np.random.default_rng(0), 200_000, 0.9
    part = std if convention == "per_part" else std / 2**0.5
    direction = np.exp(0.7j) * DELTA
    # Without and with the record; the ratio of likelihoods grows with the projection on the difference.
    noise = part * (rng.normal(size=(2, n)) + 1j * rng.normal(size=(2, n)))
    without, with_record = (noise[0] * direction.conj()).real, ((noise[1] + direction) * direction.conj()).real
    hits = int((with_record > part * DELTA * stats.norm.isf(0.05)).sum())
    power = float(SensitivityIndex(1 / per_part_noise_multiplier(std / DELTA, convention)).tpr(0.05))
    low, high = stats.binom.ppf([ALARM / 2, 1 - ALARM / 2], n, power)
    assert low < hits < high
    alarms = int((without > part * DELTA * stats.norm.isf(0.05)).sum())
    low, high = stats.binom.ppf([ALARM / 2, 1 - ALARM / 2], n, 0.05)
    assert low < alarms < high


def test_the_conventions_differ_in_eps() -> None:
    """Reading a total deviation as one of each part would report too small an eps."""

    def eps(multiplier: float) -> float:
        return get_accountant("pld").epsilon([LedgerEntry(GaussianEvent(multiplier, 0.05), 200)], 1e-5)

    assert eps(per_part_noise_multiplier(1.2, "total")) > 1.3 * eps(per_part_noise_multiplier(1.2))
    assert eps(per_part_noise_multiplier(1.2 * 2**0.5, "total")) == pytest.approx(eps(1.2))


def test_bad_input_is_named() -> None:
    with pytest.raises(PrivacyConfigError, match="per_part, total"):
        per_part_noise_multiplier(1.0, "both")  # type: ignore[arg-type]
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PrivacyConfigError, match="finite"):
            per_part_noise_multiplier(bad)

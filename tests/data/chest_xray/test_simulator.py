from __future__ import annotations

import numpy as np
import pytest

from lightning_dp.data.chest_xray import simulate
from tests.data.chest_xray.standins import masks

PATIENTS = np.repeat(np.arange(40), 2)
OWNERS = np.arange(40) % 20


def pictures(amount: np.ndarray, **settings: object) -> np.ndarray:
    return simulate(masks(), OWNERS, PATIENTS, amount.astype(np.float32), **settings).images  # type: ignore[arg-type]


def only(finding: int, amount: float = 1.0) -> np.ndarray:
    values = np.zeros((80, 3))
    values[:, finding] = amount
    return values


def test_the_seed_decides_everything() -> None:
    first, again, other = (pictures(only(0), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.05
    assert first.shape == (80, 1, 32, 32)
    assert first.dtype == np.float32


@pytest.mark.parametrize("finding", [0, 1, 2])
@pytest.mark.parametrize("size", [28, 64])
def test_a_finding_adds_a_pattern_of_the_strength_that_is_told(finding: int, size: int) -> None:
    told = simulate(masks(), OWNERS, PATIENTS, only(finding).astype(np.float32), size=size, noise=0.1)
    without = pictures(0 * only(finding), size=size, noise=0.1)
    half = pictures(only(finding, 0.5), size=size, noise=0.1)
    pattern = told.images - without
    np.testing.assert_allclose(half - without, pattern / 2, atol=1e-6)
    measured = np.sqrt((pattern.astype(np.float64) ** 2).sum((1, 2, 3))) / 0.1
    np.testing.assert_allclose(measured, told.strength[:, finding], rtol=1e-4)
    assert (told.strength > 3).all()
    assert pattern.min() > -1e-6  # every finding makes brighter


def test_what_is_left_is_white_noise_of_the_size_asked_for() -> None:
    zero = np.zeros((80, 3))
    still, noisy = (pictures(zero, noise=noise) for noise in (1e-9, 0.1))
    grain = (noisy - still).ravel() / 0.1
    n = grain.size
    assert abs(grain.mean()) < 4 / np.sqrt(n)
    assert abs(grain.std() - 1) < 4 / np.sqrt(2 * n)


def test_visits_of_one_patient_are_alike() -> None:
    found = pictures(np.zeros((80, 3)), noise=1e-9)
    same = np.abs(found[0::2] - found[1::2]).mean()
    different = np.abs(found[0:40:2] - found[40:80:2]).mean()  # the same mask, another patient
    assert same < 0.8 * different


def test_lungs_are_dark_and_a_heart_lies_between() -> None:
    mean = pictures(np.zeros((80, 3)), size=64, noise=1e-9).mean((0, 1))
    assert mean[32, 14] < 0.5 < mean[2, 2]  # the lung on the left, the corner
    assert mean[44, 33] > mean[20, 46]  # the heart, the other lung


def test_a_mask_that_has_left_the_picture_is_no_error() -> None:
    nothing = np.zeros((1, 64, 64), bool)
    found = simulate(nothing, np.zeros(2, int), np.array([0, 1]), np.ones((2, 3), np.float32))
    assert np.isfinite(found.images).all()

"""Masks and a table made up for tests: no file of anybody's is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.chest_xray import Visits


def masks(number: int = 20) -> NDArray[np.bool_]:
    """Two ellipses each, of differing width."""
    y, x = np.mgrid[0:64, 0:64]
    width = 8 + np.arange(number) % 5
    return np.stack(
        [
            (((x - 18) / w) ** 2 + ((y - 32) / 22) ** 2 < 1) | (((x - 46) / w) ** 2 + ((y - 32) / 22) ** 2 < 1)
            for w in width
        ]
    )


def table(patients: int = 400, seed: int = 0) -> Visits:
    """Up to three visits of each patient; half of the patients have findings."""
    rng = np.random.default_rng(seed)
    visits = rng.integers(1, 4, patients)
    owner = np.repeat(np.arange(patients) + 1000, visits)
    ill = np.repeat(rng.random(patients) < 0.5, visits)
    labels = (rng.random((len(owner), 3)) < 0.4) & ill[:, None]
    sex, age = rng.integers(0, 2, patients), rng.integers(0, 95, patients)
    return Visits(owner, np.repeat(sex, visits), np.repeat(age, visits), labels.astype(np.float32))

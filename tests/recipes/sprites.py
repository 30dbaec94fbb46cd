"""Made-up pictures for drawn food scenes: the packages with the real ones are not everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sprites(shifted: bool = False) -> NDArray[np.uint8]:
    """Discs of fifteen colours on nothing, RGBA, uint8 ``(15, 64, 64, 4)``; ``shifted`` gives squares."""
    y, x = np.mgrid[:64, :64] - 31.5
    inside = np.maximum(np.abs(x), np.abs(y)) < 28 if shifted else np.hypot(x, y) < 28
    found = np.zeros((15, 64, 64, 4), dtype=np.uint8)
    for number in range(15):
        found[number, ..., :3] = 40 + 80 * np.array([number % 3, number // 3 % 3, number // 9])
        found[number, ..., 3] = 255 * inside
    return found

"""Outlines of bodies from the front and from the side: what a network for images sees of a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_dp.data.arrays import ArrayDataset
from lightning_dp.data.bodies.surfaces import Floats, Ints
from lightning_dp.errors import PrivacyConfigError

__all__ = ("VIEWS", "SilhouetteDataset", "silhouettes")

SUPERSAMPLE = 2

#: The axes that lie across and along an image, of each view: x is a body's width, y its depth and z its height.
VIEWS = {"front": (0, 2), "side": (1, 2)}


class SilhouetteDataset(ArrayDataset):
    """Masks as counts of covered points, and targets; a sample's mask is in [0, 1]."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, *others = super().__getitem__(index)
        return (image.float() / SUPERSAMPLE**2, *others)


def silhouettes(
    vertices: Floats,
    faces: Ints,
    size: tuple[int, int] = (96, 64),
    height: float = 2.2,
    supersample: int = SUPERSAMPLE,
    block: int = 128,
) -> NDArray[np.uint8]:
    """Projects triangles along an axis and fills them: orthographic masks on one public frame for all bodies.

    The frame is ``height`` metres high, as wide as ``size`` says with square pixels, and has the origin in its middle, so that
    size on the image is size of the body. Each pixel counts which of its ``supersample`` squared points are covered.

    Args:
        vertices: ``(n, V, 3)`` in metres, centred, of one topology.
        faces: ``(F, 3)``.
        size: rows and columns of an image.
        height: metres that the rows stand for.
        supersample: points a pixel in each direction.
        block: bodies filled at a time.

    Returns:
        ``(n, 2, *size)``, front and side, from 0 outside to ``supersample ** 2`` inside.

    Raises:
        PrivacyConfigError: a body reaches out of the frame: it would be cut without a word.
    """
    rows, columns = (side * supersample for side in size)
    pixel = height / rows
    room = np.array([columns * pixel, columns * pixel, height]) / 2
    reach = np.abs(vertices).max((0, 1)) if len(vertices) else np.zeros(3)
    if (reach > room).any():
        raise PrivacyConfigError(
            f"a body reaches {reach[0]:.2f} m to a side, {reach[1]:.2f} m to front or back and {reach[2]:.2f} m up or down "
            f"from its middle, and the frame {room[0]:.2f}, {room[1]:.2f} and {room[2]:.2f}. Give a larger height= (metres; "
            "are the vertices in millimetres?) or more columns, or train on graphs, which have no frame."
        )
    found = np.empty((len(vertices), len(VIEWS), *size), np.uint8)
    for start in range(0, len(vertices), block):
        some = vertices[start : start + block]
        for view, (across, along) in enumerate(VIEWS.values()):
            u = (
                some[..., across] / pixel + columns / 2 - 0.5
            )  # in points of the grid, whose centres are the whole numbers
            v = rows / 2 - some[..., along] / pixel - 0.5
            filled = _filled(u[:, faces], v[:, faces], rows, columns)
            fine = filled.reshape(len(some), size[0], supersample, size[1], supersample)
            found[start : start + block, view] = fine.sum((2, 4))
    return found


def _filled(u: Floats, v: Floats, rows: int, columns: int) -> NDArray[np.bool_]:
    """Which points of the grid lie in any of the triangles ``(n, F, 3)``, row by row from the first that a triangle meets."""
    n = len(u)
    changes = np.zeros(n * rows * (columns + 1))  # +1 where a triangle begins in a row, -1 behind its last point
    top, bottom = np.ceil(v.min(-1)), np.floor(v.max(-1))
    owner = np.broadcast_to(np.arange(n)[:, None], top.shape)
    for step in range(int((bottom - top).max(initial=-1)) + 1):
        body, face = np.nonzero(top + step <= bottom)
        y = top[body, face] + step
        low, high = _meets(u[body, face], v[body, face], y)
        first = np.clip(np.ceil(low - 1e-9), 0, columns)
        behind = np.clip(np.floor(high + 1e-9) + 1, 0, columns)
        kept = (first < behind) & (y >= 0) & (y < rows)
        line = (owner[body, face][kept] * rows + y[kept].astype(np.int64)) * (columns + 1)
        np.add.at(changes, line + first[kept].astype(np.int64), 1)
        np.add.at(changes, line + behind[kept].astype(np.int64), -1)
    covered: NDArray[np.bool_] = changes.reshape(n, rows, columns + 1).cumsum(-1)[..., :columns] > 0.5
    return covered


def _meets(u: Floats, v: Floats, y: Floats) -> tuple[Floats, Floats]:
    """From where to where the line at height ``y`` lies in each triangle ``(m, 3)``; an empty interval where it does not."""
    low, high = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        rise = v[:, b] - v[:, a]
        crossed = (np.minimum(v[:, a], v[:, b]) <= y) & (y <= np.maximum(v[:, a], v[:, b])) & (rise != 0)
        at = u[:, a] + (y - v[:, a]) / np.where(rise == 0, 1.0, rise) * (u[:, b] - u[:, a])
        low = np.where(crossed, np.minimum(low, at), low)
        high = np.where(crossed, np.maximum(high, at), high)
    return low, high

"""Silhouettes: the area of known solids, a point-in-triangle test, one frame for all, and no cutting without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dp.data.bodies.module import BodyFatDataModule
from lightning_dp.data.bodies.silhouettes import silhouettes
from lightning_dp.data.bodies.simulation import ellipsoid_bodies
from lightning_dp.errors import PrivacyConfigError

SIZE, HEIGHT = (96, 64), 2.2
CELL = (HEIGHT / SIZE[0]) ** 2


def box(width: float, depth: float, height: float) -> tuple[Any, Any]:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * [width, depth, height] / 2
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([triangle for a, b, c, d in sides for triangle in ((a, b, c), (a, c, d))])
    return corners, faces


def area(image: Any) -> float:
    return float(image.sum()) / 4 * CELL


def test_a_box_has_its_front_and_its_side() -> None:
    """Up to half a point of the grid along each edge."""
    corners, faces = box(0.8, 0.3, 1.7)
    front, side = silhouettes(corners[None], faces)[0]
    point = HEIGHT / SIZE[0] / 2
    assert area(front) == pytest.approx(0.8 * 1.7, abs=(0.8 + 1.7) * point)
    assert area(side) == pytest.approx(0.3 * 1.7, abs=(0.3 + 1.7) * point)
    filled = np.argwhere(front == 4)
    assert (filled.min(0) + filled.max(0) == [95, 63]).all()  # in the middle of the frame


def test_an_ellipsoid_has_the_area_of_its_ellipse() -> None:
    model = ellipsoid_bodies(48, 64)
    unit = model.template / np.abs(model.template).max(0)
    shape = np.array([0.35, 0.2, 0.9])
    turned = unit / np.linalg.norm(unit, axis=1, keepdims=True) * shape
    front, side = silhouettes(turned[None], model.faces)[0]
    assert area(front) == pytest.approx(np.pi * 0.35 * 0.9, rel=0.02)
    assert area(side) == pytest.approx(np.pi * 0.2 * 0.9, rel=0.02)


def test_points_are_inside_by_the_definition() -> None:
    """Random triangles, one point of the grid after the other: inside if it is on one side of all three edges."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-0.5, 0.5, (9, 3))
    faces = np.arange(9).reshape(3, 3)
    front = silhouettes(corners[None], faces, (32, 32), HEIGHT, supersample=1)[0, 0]
    pixel = HEIGHT / 32
    for row in range(32):
        for column in range(32):
            x, z = (column + 0.5 - 16) * pixel, (16 - row - 0.5) * pixel
            inside = False
            for triangle in faces:
                a, b, c = corners[triangle][:, [0, 2]]
                turns = [(q[0] - p[0]) * (z - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
                inside = inside or min(turns) >= 0 or max(turns) <= 0
            assert front[row, column] == inside


def test_up_is_up_and_blocks_do_not_matter() -> None:
    corners, faces = box(0.4, 0.4, 0.4)
    several = corners + np.array([[0.0, 0.0, 0.5], [0.2, 0.0, 0.0], [0.0, -0.2, 0.0]])[:, None]
    found = silhouettes(several, faces)
    assert np.argwhere(found[0, 0])[:, 0].mean() < 40  # the first rows are the head's
    assert np.argwhere(found[1, 0])[:, 1].mean() > 35
    assert np.argwhere(found[2, 1])[:, 1].mean() < 28
    np.testing.assert_array_equal(silhouettes(several, faces, block=2), found)


@pytest.mark.parametrize("factor", [1000.0, 1.4])
def test_what_would_be_cut_is_refused(factor: float) -> None:
    corners, faces = box(0.8, 0.3, 1.7)
    with pytest.raises(PrivacyConfigError, match="larger height="):
        silhouettes(factor * corners[None], faces)


SMALL: dict[str, Any] = {"bodies": "ellipsoid", "level": 20, "n_train": 12, "n_val": 3, "n_test": 5, "batch_size": 4}


def test_module_gives_masks_of_the_same_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path))
    data, graphs = BodyFatDataModule(**SMALL, form="silhouettes"), BodyFatDataModule(**SMALL)
    data.prepare_data()
    data.setup()
    graphs.arrays()
    masks, targets = next(iter(data.test_dataloader()))
    assert masks.shape == (5, 2, 96, 64)
    assert 0 <= masks.min() < 0.01
    assert masks.max() == 1
    whole = np.stack([mesh.vertices for mesh in graphs.meshes[-5:]])
    np.testing.assert_array_equal(masks.numpy() * 4, silhouettes(whole, graphs.meshes[0].faces))
    np.testing.assert_array_equal(targets, graphs.arrays()["test/targets"])
    assert len(next(iter(data.train_dataloader()))[0]) == 4
    again = BodyFatDataModule(**SMALL, form="silhouettes")
    again.setup()
    assert torch.equal(next(iter(again.test_dataloader()))[0], masks)


def test_module_knows_its_forms() -> None:
    with pytest.raises(PrivacyConfigError, match="'graph' or 'silhouettes'"):
        BodyFatDataModule(form="shadow")  # type: ignore[arg-type]

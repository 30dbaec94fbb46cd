"""Geometry of surfaces against shapes whose volume, edges and rotations are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_dp.data.bodies.simulation import ellipsoid_bodies
from lightning_dp.data.bodies.surfaces import (
    Surface,
    cluster_vertices,
    collapse,
    decimate,
    edges_of,
    kabsch,
    open_edges,
    signed_volume,
    vertex_normals,
)
from lightning_dp.errors import PrivacyConfigError


def cube() -> Surface:
    vertices = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
    squares = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Surface(vertices, np.array([t for a, b, c, d in squares for t in ((a, b, c), (a, c, d))]))


def sphere() -> Surface:
    model = ellipsoid_bodies(rings=41, segments=60)
    return Surface(model.template, model.faces)


def rotation(seed: int) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_unit_cube_has_volume_one_wherever_it_lies() -> None:
    one = cube()
    assert signed_volume(one.vertices, one.faces) == pytest.approx(1, abs=1e-12)
    assert signed_volume(one.vertices @ rotation(0).T + 100, one.faces) == pytest.approx(1, abs=1e-9)
    assert signed_volume(one.vertices, one.faces[:, ::-1]) == pytest.approx(-1, abs=1e-12)
    stretched = one.vertices * np.array([[[1.0, 2, 3]], [[1, 1, 0.5]]])
    assert signed_volume(stretched, one.faces) == pytest.approx([6, 0.5])


def test_a_hole_has_no_volume() -> None:
    one = cube()
    assert len(open_edges(one.faces)) == 0
    assert len(open_edges(one.faces[1:])) == 3
    with pytest.raises(PrivacyConfigError, match=r"has holes.*3 open edges"):
        signed_volume(one.vertices, one.faces[1:])
    flipped = one.faces.copy()
    flipped[0] = flipped[0, ::-1]
    with pytest.raises(PrivacyConfigError, match="opposite orientation"):
        signed_volume(one.vertices, flipped)


def test_edges_are_symmetric_without_duplicates_or_loops() -> None:
    one = cube()
    edges = edges_of(np.concatenate([one.faces, one.faces[:2], [[3, 3, 5]]]))
    pairs = set(map(tuple, edges.T.tolist()))
    assert len(pairs) == edges.shape[1] == 2 * 19  # eighteen of the cube, and 3-5 of the degenerate triangle
    assert {(b, a) for a, b in pairs} == pairs
    assert all(a != b for a, b in pairs)
    # Euler: V - E + F = 2 for a closed surface without handles
    assert 8 - edges_of(one.faces).shape[1] // 2 + len(one.faces) == 2


def test_normals_point_outwards() -> None:
    one = sphere()
    normals = vertex_normals(one.vertices, one.faces)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1)
    assert ((normals * one.vertices).sum(1) > 0).all()
    lonely = vertex_normals(np.concatenate([one.vertices, [[9.0, 9, 9]]]), one.faces)
    assert (lonely[-1] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_alignment_undoes_a_rigid_motion(seed: int) -> None:
    target = np.random.default_rng(seed).normal(size=(30, 3))
    moved = target @ rotation(seed).T + [1.0, -2, 3]
    assert kabsch(moved, target) == pytest.approx(target, abs=1e-10)
    assert kabsch(2 * moved, target) - target.mean(0) == pytest.approx(2 * (target - target.mean(0)), abs=1e-10)


def test_alignment_never_reflects() -> None:
    """A mirror image would fit perfectly by a reflection; the best rotation leaves a difference and keeps the volume's sign."""
    one = cube()
    shape = one.vertices * [1.0, 2, 3]
    shape[0] += 0.3
    mirrored = shape * [-1.0, 1, 1]
    aligned = kabsch(mirrored, shape)
    assert signed_volume(aligned, one.faces) == pytest.approx(signed_volume(mirrored, one.faces))
    assert signed_volume(aligned, one.faces) < 0
    both = kabsch(np.stack([mirrored, shape]), shape)  # several at once
    assert both[0] == pytest.approx(aligned)
    assert both[1] == pytest.approx(shape)


def test_alignment_is_the_best_of_rotations() -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(3)
    points, target = rng.normal(size=(2, 20, 3))
    best, _ = Rotation.align_vectors(target - target.mean(0), points - points.mean(0))
    expected = best.apply(points - points.mean(0)) + target.mean(0)
    assert kabsch(points, target) == pytest.approx(expected, abs=1e-9)


def test_alignment_needs_corresponding_vertices() -> None:
    with pytest.raises(PrivacyConfigError, match="cannot align 8 vertices with the 7"):
        kabsch(cube().vertices, cube().vertices[:7])


@pytest.mark.parametrize("share", [1.0, 0.25, 0.1, 0.02])
def test_decimation_keeps_the_share_and_the_surface_closed(share: float) -> None:
    one = sphere()
    small = decimate(one, share)
    assert len(small.vertices) == pytest.approx(share * len(one.vertices), rel=0.35)
    assert len(open_edges(small.faces)) == 0
    assert set(range(len(small.vertices))) == set(cluster_vertices(one.vertices, share))
    volume = signed_volume(one.vertices, one.faces)
    assert signed_volume(small.vertices, small.faces) == pytest.approx(volume, rel=1e-9 if share == 1 else 0.5)
    assert signed_volume(small.vertices, small.faces) <= volume * (
        1 + 1e-9
    )  # a mean of points lies inside a convex body


def test_collapse_takes_means() -> None:
    points = np.random.default_rng(0).normal(size=(2, 6, 3))
    labels = np.array([1, 0, 1, 2, 0, 1])
    expected = np.stack([points[:, labels == i].mean(1) for i in range(3)], axis=1)
    assert collapse(points, labels) == pytest.approx(expected)


def test_degenerate_triangles_can_be_left_out() -> None:
    one = cube()
    more = Surface(one.vertices, np.concatenate([one.faces, [[1, 1, 2]]]))
    assert len(more.without_degenerate().faces) == 12
    with pytest.raises(PrivacyConfigError, match="without triangles"):
        Surface(one.vertices, np.array([[1, 1, 2]])).without_degenerate()


@pytest.mark.parametrize(
    "vertices, faces, reason",
    [
        (np.zeros((3, 3)), np.zeros((0, 3), dtype=np.int64), "without triangles has no edges"),
        (np.zeros((3, 3)), np.array([[0, 1, 3]]), "names vertex 3"),
        (np.zeros((3, 3)), np.array([[0, -1, 2]]), "or -1"),
        (np.full((3, 3), np.nan), np.array([[0, 1, 2]]), "not finite"),
        (np.zeros((3, 2)), np.array([[0, 1, 2]]), "split polygons"),
    ],
)
def test_what_is_no_surface_is_refused(vertices: NDArray[np.float64], faces: NDArray[np.int64], reason: str) -> None:
    with pytest.raises(PrivacyConfigError, match=reason):
        Surface(vertices, faces)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_shares_outside_0_and_1_are_refused(share: float) -> None:
    with pytest.raises(PrivacyConfigError, match="above 0 and at most 1"):
        cluster_vertices(cube().vertices, share)


def test_too_small_a_share_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="keep a larger share"):
        decimate(sphere(), 0.0003)

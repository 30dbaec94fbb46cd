"""Geometry of triangulated closed surfaces: what a mesh network, its data and their checks need. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_dp.errors import PrivacyConfigError

__all__ = (
    "Surface",
    "cluster_vertices",
    "collapse",
    "decimate",
    "edges_of",
    "kabsch",
    "open_edges",
    "signed_volume",
    "vertex_normals",
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Surface:
    """A triangulated surface in metres.

    Args:
        vertices: Positions, ``(V, 3)``.
        faces: Vertex numbers of each triangle, counter-clockwise seen from outside, int64 ``(F, 3)``.

    Raises:
        PrivacyConfigError: There is no triangle (so no edge either), a vertex number does not exist, or a position is not
            finite.
    """

    vertices: Floats
    faces: Ints

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise PrivacyConfigError(
                f"a surface has vertices (V, 3) and triangles (F, 3), not {self.vertices.shape} and {self.faces.shape}: "
                "split polygons into triangles."
            )
        if not len(self.faces):
            raise PrivacyConfigError(
                "a mesh without triangles has no edges, so that a graph network sees unconnected points: export the surface "
                "with its faces, not the point cloud."
            )
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise PrivacyConfigError(
                f"a triangle names vertex {self.faces.max()} or {self.faces.min()}, but the mesh has vertices 0 to "
                f"{len(self.vertices) - 1}: the file is damaged, or counts its vertices from 1."
            )
        if not np.isfinite(self.vertices).all():
            raise PrivacyConfigError("a vertex position is not finite: repair the mesh or leave it out.")

    def without_degenerate(self) -> Surface:
        """The surface without triangles that name a vertex twice; they have neither area nor volume."""
        return Surface(self.vertices, self.faces[~_degenerate(self.faces)])


def _degenerate(faces: Ints) -> NDArray[np.bool_]:
    a, b, c = faces.T
    found: NDArray[np.bool_] = (a == b) | (b == c) | (c == a)
    return found


def _directed(faces: Ints) -> Ints:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def edges_of(faces: Ints) -> Ints:
    """The edges of triangles, each once in either direction, without self-loops: int64 ``(2, E)``, sorted."""
    pairs = _directed(faces)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.ascontiguousarray(np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0).T)


def open_edges(faces: Ints) -> Ints:
    """The directed edges that are passed more often one way than the other: ``(k, 2)``, none if the surface is closed.

    They border a hole, or join triangles that disagree on which side is outside. Without any of them, and only then, the
    signed volume does not depend on the origin.
    """
    pairs = _directed(faces[~_degenerate(faces)])
    if not len(pairs):
        return pairs
    size = int(pairs.max()) + 1
    codes, counts = np.unique(pairs[:, 0] * size + pairs[:, 1], return_counts=True)
    back = (codes % size) * size + codes // size
    at = np.minimum(np.searchsorted(codes, back), len(codes) - 1)
    opposite = np.where(codes[at] == back, counts[at], 0)
    found = codes[counts > opposite]
    return np.stack([found // size, found % size], axis=1)


def signed_volume(vertices: Floats, faces: Ints) -> Floats:
    """Volume inside a closed surface, ``1/6 sum v0 . (v1 x v2)`` over its triangles; positive if they face outwards.

    Args:
        vertices: ``(..., V, 3)``; several surfaces of one topology at once.
        faces: ``(F, 3)``.

    Returns:
        Volumes ``(...)``, in the cubed unit of the positions.

    Raises:
        PrivacyConfigError: The surface has holes, so that the sum would change with the origin.
    """
    gaps = len(open_edges(faces))
    if gaps:
        raise PrivacyConfigError(
            f"the surface has holes, or triangles of opposite orientation side by side ({gaps} open edges), and encloses no "
            "volume: close the holes and orient the triangles in the program that made the mesh."
        )
    corners = vertices - vertices.mean(-2, keepdims=True)  # near the origin the terms are small and cancel less
    a, b, c = (corners[..., faces[:, i], :] for i in range(3))
    volume: Floats = (np.cross(a, b) * c).sum((-1, -2)) / 6
    return volume


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Unit outward normals, means over a vertex's triangles weighted by area: ``(V, 3)``; 0 for a vertex without any."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    weighted = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(total, faces[:, i], weighted)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    normals: Floats = np.divide(total, length, out=np.zeros_like(total), where=length > 0)
    return normals


def kabsch(points: Floats, target: Floats) -> Floats:
    """Move points rigidly onto corresponding points of a target, by least squares; the scale stays what it is.

    With the centred points p and q, ``H = sum p q^T = U S V^T`` and ``R = V diag(1, 1, det(V U^T)) U^T``: a rotation, never
    a reflection (W. Kabsch, Acta Crystallographica A32, 1976, and A34, 1978).

    Args:
        points: ``(..., V, 3)``.
        target: ``(V, 3)``; vertex i of the points belongs to vertex i of the target.

    Returns:
        The moved points, ``(..., V, 3)``, with the target's mean.

    Raises:
        PrivacyConfigError: The numbers of vertices differ, so that there is no correspondence.
    """
    if points.shape[-2:] != target.shape:
        raise PrivacyConfigError(
            f"cannot align {points.shape[-2]} vertices with the {len(target)} of the template: rigid alignment takes vertex "
            "i for the same place in both. Register the meshes to one topology, or only centre them."
        )
    p, q = points - points.mean(-2, keepdims=True), target - target.mean(0)
    u, _, vt = np.linalg.svd(np.swapaxes(p, -1, -2) @ q)
    v, ut = np.swapaxes(vt, -1, -2), np.swapaxes(u, -1, -2)
    sign = np.ones(u.shape[:-1])
    sign[..., 2] = np.sign(np.linalg.det(v @ ut))
    rotation = (v * sign[..., None, :]) @ ut
    moved: Floats = p @ np.swapaxes(rotation, -1, -2) + target.mean(0)
    return moved


def cluster_vertices(vertices: Floats, share: float) -> Ints:
    """Group vertices by the cells of a cubic grid, about ``share`` of the vertices in number.

    The cell size is found by bisection. Clusters are numbered without gaps.

    Args:
        vertices: ``(V, 3)``.
        share: Wanted number of clusters over number of vertices, in (0, 1].

    Returns:
        The cluster of each vertex, int64 ``(V,)``.

    Raises:
        PrivacyConfigError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise PrivacyConfigError(f"share={share} of the vertices to keep; choose a number above 0 and at most 1.")
    if share == 1:
        return np.arange(len(vertices))
    low, high = 0.0, float(np.ptp(vertices, axis=0).max()) + 1e-9
    wanted = max(1.0, share * len(vertices))
    for _ in range(40):
        size = (low + high) / 2
        if len(np.unique(_cells(vertices, size), axis=0)) > wanted:
            low = size
        else:
            high = size
    labels: Ints = np.unique(_cells(vertices, high), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return labels


def _cells(vertices: Floats, size: float) -> Ints:
    cells: Ints = np.floor((vertices - vertices.min(0)) / size).astype(np.int64)
    return cells


def collapse(vertices: Floats, labels: Ints) -> Floats:
    """The mean position of each cluster: ``(..., V, 3)`` to ``(..., clusters, 3)``."""
    counts = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means: Floats = np.add.reduceat(vertices[..., order, :], starts, axis=-2) / counts[:, None]
    return means


def decimate(surface: Surface, share: float) -> Surface:
    """The surface with about ``share`` of its vertices, by vertex clustering (Rossignac and Borrel 1993).

    A closed surface stays closed: triangles that collapse enclose nothing, and the others keep their neighbours.

    Raises:
        PrivacyConfigError: So few clusters are left that no triangle is.
    """
    labels = cluster_vertices(surface.vertices, share)
    faces = labels[surface.faces]
    faces = faces[~_degenerate(faces)]
    if not len(faces):
        raise PrivacyConfigError(
            f"no triangle is left at {share:.3g} of {len(surface.vertices)} vertices; keep a larger share, for one "
            "level=100."
        )
    return Surface(collapse(surface.vertices, labels), faces)

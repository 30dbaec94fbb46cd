"""Real meshes: a folder of files and a table of targets."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.bodies.files import MESH_SUFFIXES, read_mesh
from lightning_dp.data.bodies.surfaces import Surface, cluster_vertices, collapse, decimate, kabsch, open_edges
from lightning_dp.errors import PrivacyConfigError

__all__ = ("MeshFolder", "read_folder", "read_targets")

LARGEST = 10.0  # metres; longer is no body, but one in other units


@dataclass(frozen=True)
class MeshFolder:
    """What a folder holds.

    Attributes:
        meshes: Centred, decimated, and aligned with the template if there is one.
        targets: ``(n, t)``.
        subjects: The person of each mesh; the file name where none is given.
        template: Its decimated and centred vertices, or None.
    """

    meshes: list[Surface]
    targets: NDArray[np.float32]
    subjects: NDArray[Any]
    template: NDArray[np.float64] | None


def read_folder(root: Path, targets: tuple[str, ...], share: float, allow_holes: bool = False) -> MeshFolder:
    """Read ``targets.csv``, the meshes it names, and ``template.ply`` (``.off``, ``.obj``) if it is there.

    Args:
        root: The folder.
        targets: Columns to take.
        share: Of the vertices to keep.
        allow_holes: Take surfaces that enclose no volume.

    Raises:
        PrivacyConfigError: Something is missing, damaged or does not fit; the message names the file.
    """
    names, values, subjects = read_targets(root, targets)
    path = next((root / f"template{end}" for end in MESH_SUFFIXES if (root / f"template{end}").is_file()), None)
    labels: NDArray[np.int64] | None = None
    template: NDArray[np.float64] | None = None
    if path is not None:
        surface = read_mesh(path)
        labels = cluster_vertices(surface.vertices, share)
        template = collapse(surface.vertices, labels)
        template = template - template.mean(0)
    meshes = []
    for name in names:
        mesh = read_mesh(root / name)
        extent = float(np.ptp(mesh.vertices, axis=0).max())
        if extent > LARGEST:
            raise PrivacyConfigError(
                f"{root / name} is {extent:.4g} m long: positions are in metres. Divide those in millimetres by 1000, those in "
                "centimetres by 100; volumes and targets go by them."
            )
        gaps = len(open_edges(mesh.faces))
        if gaps and not allow_holes:
            raise PrivacyConfigError(
                f"{root / name} has holes ({gaps} open edges), so that the surface encloses no volume: close them in the "
                "program that made the mesh, or take it as it is with allow_holes=True."
            )
        try:
            meshes.append(_placed(mesh.without_degenerate(), share, labels, template))
        except PrivacyConfigError as error:
            raise PrivacyConfigError(f"{root / name}: {error}") from error
    return MeshFolder(meshes, values, subjects, template)


def _placed(
    mesh: Surface, share: float, labels: NDArray[np.int64] | None, template: NDArray[np.float64] | None
) -> Surface:
    if labels is None or template is None:
        mesh = decimate(mesh, share)
        return Surface(mesh.vertices - mesh.vertices.mean(0), mesh.faces)
    if len(mesh.vertices) != len(labels):
        raise PrivacyConfigError(
            f"{len(mesh.vertices)} vertices, and the template has {len(labels)}: register the meshes to the template, or "
            "take the template away, so that meshes are centred and not turned."
        )
    reduced = Surface(collapse(mesh.vertices, labels), labels[mesh.faces]).without_degenerate()
    return Surface(kabsch(reduced.vertices, template), reduced.faces)


def read_targets(root: Path, targets: tuple[str, ...]) -> tuple[list[str], NDArray[np.float32], NDArray[Any]]:
    """File names, targets ``(n, t)`` and subjects of ``targets.csv``.

    Raises:
        PrivacyConfigError: The file, a column, a value or a mesh is missing.
    """
    path = root / "targets.csv"
    if not path.is_file():
        raise PrivacyConfigError(f"{path} is missing: a table with the columns mesh, {', '.join(targets)}.")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"mesh", *targets} - set(rows[0] if rows else ())
    if missing:
        raise PrivacyConfigError(f"{path} has no column {', '.join(sorted(missing))}, or no rows.")
    if len({(root / row["mesh"]).resolve() for row in rows}) < len(rows):  # it would be two privacy units
        raise PrivacyConfigError(f"{path} names a mesh twice: leave one of the rows out.")
    names = [row["mesh"] for row in rows]
    for name in names:
        if not (root / name).is_file():
            raise PrivacyConfigError(f"{path} names the mesh {name}, which is not in {root}.")
    try:
        values = np.asarray([[float(row[target]) for target in targets] for row in rows], dtype=np.float32)
    except ValueError as error:
        raise PrivacyConfigError(f"{path} holds a target that is no number ({error}): leave that row out.") from error
    if not np.isfinite(values).all():
        raise PrivacyConfigError(f"{path} holds a target that is not finite: leave that row out.")
    return names, values, np.asarray([row.get("subject") or row["mesh"] for row in rows])

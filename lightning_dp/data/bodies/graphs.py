"""Surfaces as torch-geometric graphs: features of vertices, and the data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_dp.data.arrays import ArrayDataset
from lightning_dp.data.bodies.surfaces import Surface, edges_of, vertex_normals
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("FEATURES", "MeshDataset", "vertex_features")

#: Features of a vertex and how many numbers each is.
FEATURES = {"position": 3, "residual": 3, "normal": 3, "degree": 1}
#: Public lengths that bring coordinates to about 1: half a body's height, and a common deviation from the template, in metres.
BODY_SCALE, RESIDUAL_SCALE = 0.5, 0.05


class MeshDataset(ArrayDataset):
    """Meshes as torch-geometric graphs, one mesh a sample.

    Args:
        columns: Numbers of the meshes, and their targets ``(n, t)``.
        unit_id: The owner of each mesh, or None.
        meshes: All meshes.
        features: Features of vertices, see :class:`BodyFatDataModule`.
        template: The public template, for residuals.

    Shape:
        A sample is a ``Data`` with ``x`` ``(V, d)``, ``edge_index`` ``(2, E)`` and ``y`` ``(1, t)``.
    """

    def __init__(
        self,
        columns: list[NDArray[Any]],
        unit_id: NDArray[np.int64] | None,
        meshes: list[Surface],
        features: tuple[str, ...],
        template: NDArray[np.float64] | None,
    ) -> None:
        super().__init__(columns, unit_id)
        data = require("torch_geometric.data", "graphs", "BodyFatDataModule").Data
        edges: dict[int, torch.Tensor] = {}  # meshes of one topology share them
        self.graphs: list[Any] = []
        for number, target in zip(columns[0], self.tensors[1], strict=True):
            mesh = meshes[int(number)]
            key = id(mesh.faces)
            if key not in edges:
                edges[key] = torch.from_numpy(edges_of(mesh.faces))
            x = torch.from_numpy(vertex_features(mesh, features, template).astype(np.float32))
            self.graphs.append(data(x=x, edge_index=edges[key], y=target[None]))

    def __getitem__(self, index: int) -> Any:
        return self.graphs[index]


def vertex_features(
    mesh: Surface, features: tuple[str, ...], template: NDArray[np.float64] | None
) -> NDArray[np.floating[Any]]:
    """Features of the vertices, ``(V, d)``: each is a function of this mesh and of public constants alone."""
    found = []
    for name in features:
        if name == "position":
            found.append(mesh.vertices / BODY_SCALE)
        elif name == "residual":
            if template is None or template.shape != mesh.vertices.shape:
                raise PrivacyConfigError(
                    "the feature 'residual' needs a template with the vertices of every mesh: put template.ply (.off, .obj), "
                    "a body that may be public, beside the meshes, or leave the feature out."
                )
            found.append((mesh.vertices - template) / RESIDUAL_SCALE)
        elif name == "normal":
            found.append(vertex_normals(mesh.vertices, mesh.faces))
        else:  # degree; six is that of a regular triangulation
            found.append(np.bincount(edges_of(mesh.faces)[0], minlength=len(mesh.vertices))[:, None] / 6)
    return np.concatenate(found, axis=1)

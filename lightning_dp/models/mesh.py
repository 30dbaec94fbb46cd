"""A graph network over the vertices of a surface, for numbers that the whole shape determines."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("MeshGNN",)


class MeshGNN(nn.Module):
    """Graph convolutions over a mesh, pooling by mean and maximum, and a small head: one vector for each mesh.

    The arrangement of Mueller, Zhou et al. 2023, arXiv 2308.02493 (body surface to fat volumes); widths, norms and the
    pooling are ours. A layer is ``ReLU(norm(conv(h)))``. Nothing couples two meshes: norms work within a node or a graph, and
    pooling within a graph, so that one mesh can be one privacy unit.

    The layers of torch-geometric: ``"sage"`` ``h_i' = W1 h_i + W2 mean_{j in N(i)} h_j + b`` (arXiv 1706.02216), ``"gcn"``
    ``D^-1/2 (A + I) D^-1/2 H W + b`` (arXiv 1609.02907), ``"gat"`` attention with one head (arXiv 1710.10903).

    Args:
        in_features: Features of a vertex.
        hidden: Width of the graph layers and of the head.
        layers: Number of graph layers.
        conv: ``"sage"``, ``"gcn"`` or ``"gat"``.
        norm: ``"none"``; ``"layer"`` over the features of a vertex; ``"graph"`` over the vertices of one mesh (GraphNorm).
        outputs: Numbers predicted for each mesh.

    Shape:
        Input: a torch-geometric batch with ``x`` ``(V, in_features)``, ``edge_index`` ``(2, E)`` and ``batch`` ``(V,)``.
        Output: ``(num_graphs, outputs)``.

    Raises:
        PrivacyConfigError: An unknown layer or norm; in use, meshes without edges or with other features.
        ModuleNotFoundError: The extra ``graphs`` is not installed.
    """

    def __init__(
        self,
        in_features: int = 3,
        hidden: int = 64,
        layers: int = 3,
        conv: Literal["sage", "gcn", "gat"] = "sage",
        norm: Literal["none", "layer", "graph"] = "none",
        outputs: int = 2,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise PrivacyConfigError(f"layers={layers}: a graph network has at least one graph layer.")
        gnn = require("torch_geometric.nn", "graphs", "MeshGNN")
        kinds = {"sage": gnn.SAGEConv, "gcn": gnn.GCNConv, "gat": gnn.GATConv}
        norms: dict[str, Any] = {"none": None, "layer": nn.LayerNorm, "graph": gnn.GraphNorm}
        for name, value, known in (("conv", conv, kinds), ("norm", norm, norms)):
            if value not in known:
                raise PrivacyConfigError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        widths = [in_features, *[hidden] * layers]
        self.in_features = in_features
        self.norm = norm
        self.convs = nn.ModuleList(kinds[conv](a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.norms = nn.ModuleList([] if norm == "none" else [norms[norm](hidden) for _ in range(layers)])
        self.mean, self.max = gnn.MeanAggregation(), gnn.MaxAggregation()
        self.head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, batch: Any) -> Tensor:
        """One row for each mesh of the batch."""
        h, edges = batch.x, batch.edge_index
        if h.shape[-1] != self.in_features:
            raise PrivacyConfigError(
                f"a vertex has {h.shape[-1]} features and MeshGNN was made for {self.in_features}: give it "
                f"in_features={h.shape[-1]}, or change the features of the data."
            )
        if not edges.numel():
            raise PrivacyConfigError(
                "the meshes have no edges, so that vertices cannot exchange anything: build edge_index from the triangles "
                "(lightning_dp.data.bodies.surfaces.edges_of)."
            )
        for number, conv in enumerate(self.convs):
            h = conv(h, edges)
            if (
                self.norm == "graph"
            ):  # with the batch vector: without it the statistics would run over all meshes together
                h = self.norms[number](h, batch.batch, batch.num_graphs)
            elif self.norm == "layer":
                h = self.norms[number](h)
            h = h.relu()
        pooled = [pool(h, batch.batch, dim_size=batch.num_graphs) for pool in (self.mean, self.max)]
        out: Tensor = self.head(torch.cat(pooled, dim=1))
        return out

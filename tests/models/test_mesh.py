"""The mesh network against dense matrices, a loop over single meshes, and the symmetries it must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from torch_geometric.data import Batch, Data

from lightning_dp.data.bodies.simulation import draw_parameters, ellipsoid_bodies
from lightning_dp.data.bodies.surfaces import edges_of
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine, units_of_batch
from lightning_dp.models import MeshGNN
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error

KINDS = [(conv, norm) for conv in ("sage", "gcn", "gat") for norm in ("none", "layer", "graph")]


def meshes(n: int = 5) -> list[Data]:
    """Small torsos, each with a number of vertices of its own."""
    import numpy as np

    found = []
    for i in range(n):
        model = ellipsoid_bodies(rings=3 + i % 3, segments=5 + i % 2)
        x = model.vertices(draw_parameters(1, np.random.default_rng(i)))[0] / 0.5
        found.append(
            Data(
                x=torch.from_numpy(x).float(),
                edge_index=torch.from_numpy(edges_of(model.faces)),
                y=torch.tensor([[float(i), 1.0 - i]]),
            )
        )
    return found


def network(conv: Any = "sage", norm: Any = "none", **arguments: Any) -> MeshGNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MeshGNN(conv=conv, norm=norm, **{"hidden": 8, **arguments})


def loss_of(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch) - batch.y).square().sum(1).mean()


@pytest.mark.parametrize("conv, norm", KINDS)
def test_clipped_sum_is_that_of_a_loop_over_meshes(conv: str, norm: str) -> None:
    module, graphs = network(conv, norm), meshes()
    parameters = list(module.parameters())
    alone = [list(torch.autograd.grad(loss_of(module, Batch.from_data_list([one])), parameters)) for one in graphs]
    norms = torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in alone])
    bound = float(norms.median())
    batch = Batch.from_data_list(graphs)
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(loss_of(module, batch), units_of_batch(batch, len(graphs)))
        found = engine.clipped_sum()
    assert relative_error(found, clipped_sum(alone, bound, "flat", layer_numbers(module))) < 1e-4


@pytest.mark.parametrize("conv, norm", KINDS)
def test_numbering_of_vertices_does_not_matter(conv: str, norm: str) -> None:
    module, one = network(conv, norm), meshes(1)[0]
    order = torch.randperm(len(one.x), generator=torch.Generator().manual_seed(1))
    back = torch.argsort(order)
    other = Data(x=one.x[order], edge_index=back[one.edge_index])
    first, second = (module(Batch.from_data_list([data])) for data in (one, other))
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "graph"])
def test_a_mesh_does_not_see_its_neighbours_in_the_batch(norm: str) -> None:
    module, graphs = network(norm=norm), meshes()
    together = module(Batch.from_data_list(graphs))
    alone = torch.cat([module(Batch.from_data_list([one])) for one in graphs])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("conv", ["sage", "gcn"])
def test_layers_are_their_dense_equations(conv: str) -> None:
    module, one = network(conv, layers=2), meshes(1)[0]
    n = len(one.x)
    adjacency = torch.zeros(n, n)
    adjacency[one.edge_index[1], one.edge_index[0]] = 1
    h = one.x
    for layer in module.convs:
        weights = dict(layer.named_parameters())
        if conv == "sage":
            mean = adjacency / adjacency.sum(1, keepdim=True)
            h = mean @ h @ weights["lin_l.weight"].T + weights["lin_l.bias"] + h @ weights["lin_r.weight"].T
        else:
            loops = adjacency + torch.eye(n)
            root = loops.sum(1).rsqrt()
            h = root[:, None] * loops * root @ (h @ weights["lin.weight"].T) + weights["bias"]
        h = h.relu()
    expected = module.head(torch.cat([h.mean(0), h.max(0).values])[None])
    assert torch.allclose(module(Batch.from_data_list([one])), expected, atol=1e-5)


def test_sizes_follow_the_arguments() -> None:
    module = MeshGNN(in_features=7, hidden=32, layers=4, outputs=3)
    count = 2 * 7 * 32 + 32 + 3 * (2 * 32 * 32 + 32) + 64 * 32 + 32 + 32 * 3 + 3
    assert sum(p.numel() for p in module.parameters()) == count
    batch = Batch.from_data_list([Data(x=torch.rand(4, 7), edge_index=torch.tensor([[0, 1], [1, 0]]))] * 2)
    assert module(batch).shape == (2, 3)


@pytest.mark.parametrize(
    "arguments, reason",
    [({"conv": "cheb"}, "one of sage, gcn, gat"), ({"norm": "batch"}, "one of none, layer"), ({"layers": 0}, "at least one")],
)  # fmt: skip
def test_unknown_settings_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(PrivacyConfigError, match=reason):
        MeshGNN(**arguments)


def test_other_features_and_point_clouds_are_refused() -> None:
    module = network()
    with pytest.raises(PrivacyConfigError, match="in_features=5"):
        module(Batch.from_data_list([Data(x=torch.rand(3, 5), edge_index=torch.tensor([[0], [1]]))]))
    with pytest.raises(PrivacyConfigError, match="no edges"):
        module(Batch.from_data_list([Data(x=torch.rand(3, 3), edge_index=torch.zeros(2, 0, dtype=torch.int64))]))

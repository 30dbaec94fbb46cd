"""Graph networks under the strategy: an unmodified module, torch-geometric's own loader, one graph as the unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from torch_geometric import nn as gnn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import UnitMap
from tests.gradients.oracle import clipped_sum, layer_numbers
from tests.strategies.helpers import fit, flat, strategy


def cycles_and_stars(n: int = 40) -> list[Data]:
    """Two classes of graphs by their shape, some of a single node, sizes all different."""
    graphs, random = [], torch.Generator().manual_seed(0)
    for i in range(n):
        nodes = 1 + i % 7
        ring, hub = torch.arange(nodes), torch.zeros(nodes, dtype=torch.int64)
        edges = torch.stack([ring, (ring + 1) % nodes if i % 2 else hub])[:, : max(0, nodes - i % 3)]
        x = torch.randn(nodes, 4, generator=random)
        attributes = torch.randn(edges.shape[1], 2, generator=random)
        graphs.append(Data(x=x, edge_index=edges, edge_attr=attributes, y=torch.tensor([i % 2])))
    return graphs


class Gin(LightningModule):
    """A graph classifier as one finds it in tutorials: nothing in it knows of privacy."""

    def __init__(self, norm: nn.Module | None = None, per_node: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first = gnn.GINEConv(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), edge_dim=2)
            self.second = gnn.GATConv(8, 8, edge_dim=2)
            self.norm = gnn.GraphNorm(8) if norm is None else norm
            self.head = nn.Linear(8, 2)
        self.per_node = per_node
        self.sizes: list[int] = []

    def forward(self, batch: Any) -> Tensor:
        h = self.first(batch.x, batch.edge_index, batch.edge_attr).relu()
        h = self.norm(self.second(h, batch.edge_index, batch.edge_attr), batch.batch, batch.num_graphs).relu()
        return self.head(h if self.per_node else gnn.global_mean_pool(h, batch.batch, batch.num_graphs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.sizes.append(batch.num_graphs)
        return F.cross_entropy(self(batch), batch.y[batch.batch] if self.per_node else batch.y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def loader(batch_size: int = 10) -> DataLoader:
    return DataLoader(cycles_and_stars(), batch_size=batch_size, shuffle=True)


def test_trains_and_is_charged() -> None:
    module, plugin = Gin(), strategy()
    before = flat(module)
    fit(module, plugin, loader(), max_epochs=2)
    assert plugin.ledger.steps == 8
    assert not torch.equal(flat(module), before)
    assert bool(torch.isfinite(flat(module)).all())


def test_a_step_is_the_clipped_sum_over_graphs() -> None:
    """Every graph in every step, no noise: one step of plain SGD on hand-clipped gradients."""
    module, graphs = Gin(), cycles_and_stars()
    parameters = list(module.parameters())
    gradients = [
        list(torch.autograd.grad(module.training_step(batch, 0), parameters))
        for batch in DataLoader(graphs, batch_size=1)
    ]
    total = clipped_sum(gradients, 0.5, "flat", layer_numbers(module))
    expected = flat(module) - 0.5 * torch.cat([g.flatten() for g in total]) / len(graphs)
    plugin = strategy(noise_multiplier=0.0, max_grad_norm=0.5, seed=1)
    with pytest.warns(UserWarning, match="NOT private"):
        fit(module, plugin, DataLoader(graphs, batch_size=40), max_steps=1)
    assert torch.allclose(flat(module), expected, atol=1e-6)


@pytest.mark.parametrize("physical", [1, 3, 7])
def test_physical_batches_of_graphs_do_not_change_a_step(physical: int) -> None:
    results = []
    for size in (None, physical):
        module = Gin()
        plugin = strategy(noise_multiplier=0.0, seed=2, physical_batch_size=size)
        with pytest.warns(UserWarning, match="NOT private"):
            fit(module, plugin, loader(), max_epochs=1)
        results.append(flat(module))
    assert max(module.sizes) <= physical
    assert torch.allclose(results[0], results[1], atol=1e-5)


def test_empty_draws_of_graphs_are_steps_without_data() -> None:
    module, plugin = Gin(), strategy(noise_multiplier=0.0, seed=3, self_check=False)
    before = flat(module)
    with pytest.warns(UserWarning, match="NOT private"):
        fit(module, plugin, DataLoader(cycles_and_stars()[:1] * 1000, batch_size=1), max_steps=30)
    assert plugin.ledger.steps == 30
    assert bool(torch.isfinite(flat(module)).all())
    assert not torch.equal(flat(module), before)


def test_workers_bring_graphs() -> None:
    plugin = strategy()
    fit(Gin(), plugin, DataLoader(cycles_and_stars(), batch_size=10, num_workers=1), max_epochs=1)
    assert plugin.ledger.steps == 4


def test_a_mean_over_nodes_couples_graphs_and_is_refused() -> None:
    with pytest.raises(PrivacyError, match="when the other samples of its batch change|differs by"):
        fit(Gin(per_node=True), strategy(), loader())


def test_a_normalisation_over_the_whole_batch_is_refused() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = gnn.GraphNorm(8)

        def forward(self, h: Tensor, batch: Tensor, size: int) -> Tensor:
            return self.norm(h)

    with pytest.raises(PrivacyError, match="couples the units|other samples of its batch change"):
        fit(Gin(Careless()), strategy(), loader())


def test_kinds_of_rows_are_learnt_before_the_first_step() -> None:
    """The first five samples looked at have as many nodes as edges; the check goes on until one has not."""
    rings = []
    for i in range(30):
        nodes = 3 + i % 4
        extra = {11: 1, 13: -1}.get(i, 0)
        ring = torch.arange(nodes + extra) % nodes
        data = Data(
            x=torch.randn(nodes, 4), edge_index=torch.stack([ring, (ring + 1) % nodes]), y=torch.tensor([i % 2])
        )
        data.edge_attr = torch.randn(data.num_edges, 2)
        rings.append(data)
    module, plugin = Gin(), strategy()
    fit(module, plugin, DataLoader(rings, batch_size=30), max_epochs=2)  # all of them: as many nodes as edges in total
    assert plugin.ledger.steps == 2


# --- other ragged batches ---------------------------------------------------------------------------------------------


class Bags(LightningModule):
    """Patients with several images each, concatenated; a home-made batch that only its author can read."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.encoder, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows, owner, y = batch
        h = torch.tanh(self.encoder(rows))
        pooled = torch.zeros(len(y), 8).index_add(0, owner, h)
        return F.cross_entropy(self.head(pooled), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def bags(n: int = 24) -> list[tuple[Tensor, int]]:
    random = torch.Generator().manual_seed(5)
    return [(torch.randn(1 + i % 5, 4, generator=random), i % 2) for i in range(n)]


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.tensor([len(x) for x, _ in samples])
    owner = torch.arange(len(samples)).repeat_interleave(counts)
    return torch.cat([x for x, _ in samples]), owner, torch.tensor([y for _, y in samples])


def bag_map(batch: Any) -> UnitMap:
    return UnitMap(len(batch[2]), kinds={"images": batch[1]})


def test_a_map_of_your_own() -> None:
    module, parameters = Bags(), None
    parameters = list(module.parameters())
    gradients = [list(torch.autograd.grad(module.training_step(collate([one]), 0), parameters)) for one in bags()]
    total = clipped_sum(gradients, 0.5, "flat", layer_numbers(module))
    expected = flat(module) - 0.5 * torch.cat([g.flatten() for g in total]) / 24
    data = torch.utils.data.DataLoader(bags(), batch_size=24, collate_fn=collate)
    with pytest.warns(UserWarning, match="NOT private"):
        fit(module, strategy(noise_multiplier=0.0, max_grad_norm=0.5, unit_map=bag_map), data, max_steps=1)
    assert torch.allclose(flat(module), expected, atol=1e-6)


def test_without_a_map_it_is_refused() -> None:
    data = torch.utils.data.DataLoader(bags(), batch_size=6, collate_fn=collate)
    with pytest.raises(PrivacyError, match=r"encoder \(Linear\) saw"):
        fit(Bags(), strategy(), data)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (
            lambda batch: UnitMap(len(batch[2]) + 1),
            "returned 3 units for a batch of 2|returned 2 units for a batch of 1",
        ),
        (lambda batch: len(batch[2]), "returned a int"),
        (
            lambda batch: UnitMap(len(batch[2]), kinds={"images": batch[1].flip(0)}),
            "differs|couples|change|nothing before it told",
        ),
    ],
    ids=["too many units", "no map", "rows given to the wrong units"],
)
def test_a_wrong_map_is_refused(wrong: Any, reason: str) -> None:
    data = torch.utils.data.DataLoader(bags(), batch_size=6, collate_fn=collate)
    with pytest.raises(PrivacyError, match=reason):
        fit(Bags(), strategy(unit_map=wrong), data)

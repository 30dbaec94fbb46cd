"""One graph is one privacy unit: every layer of a graph network gives what a loop over single graphs gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from torch_geometric import nn as gnn
from torch_geometric.data import Batch, Data, HeteroData

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, RowMemory, UnitMap, units_of_batch
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error

FEATURES, EDGE_FEATURES, HIDDEN = 5, 3, 8


def graph(nodes: int, edges: int, seed: int = 0, loops: int = 0) -> Data:
    """A directed multigraph without self-loops but for ``loops`` of them, the last nodes often isolated."""
    random = torch.Generator().manual_seed(100 * nodes + 10 * edges + seed)
    if edges:
        source = torch.randint(nodes, (edges,), generator=random)
        target = (source + 1 + torch.randint(max(1, nodes - 1), (edges,), generator=random)) % nodes
        index = torch.stack([source, target])
    else:
        index = torch.empty(2, 0, dtype=torch.int64)
    index = torch.cat([index, torch.arange(loops).expand(2, loops)], 1)
    return Data(
        x=torch.randn(nodes, FEATURES, generator=random),
        edge_index=index,
        edge_attr=torch.randn(index.shape[1], EDGE_FEATURES, generator=random),
        kind=torch.randint(4, (nodes,), generator=random),
        num_nodes=nodes,
    )


ORDINARY = [graph(4, 7), graph(7, 12), graph(3, 4), graph(6, 15)]
ODD = [
    graph(1, 0),
    graph(5, 8, loops=2),
    graph(3, 0),
    graph(4, 7),
    graph(1, 0, 1),
]  # single nodes, no edges, self-loops


class OnNodes(nn.Module):
    """One layer between a node encoder and a readout; how it is called is an argument."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.encode, self.layer, self.call = nn.Linear(FEATURES, HIDDEN), layer, call
        self.decode = nn.Linear(HIDDEN, 2)

    def forward(self, batch: Any) -> Tensor:
        h = torch.tanh(self.encode(batch.x))
        h = torch.tanh(self.call(self.layer, h, batch))
        return gnn.global_mean_pool(self.decode(h), batch.batch, batch.num_graphs)


def plain(layer: nn.Module, h: Tensor, b: Any) -> Tensor:
    return layer(h, b.edge_index)


def with_edges(layer: nn.Module, h: Tensor, b: Any) -> Tensor:
    return layer(h, b.edge_index, b.edge_attr)


def with_graphs(layer: nn.Module, h: Tensor, b: Any) -> Tensor:
    return layer(h, b.batch, batch_size=b.num_graphs)


def mlp(inputs: int, outputs: int = HIDDEN) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, outputs))


H = HIDDEN
CONVOLUTIONS: dict[str, Callable[[], OnNodes]] = {
    "gcn": lambda: OnNodes(gnn.GCNConv(H, H), plain),
    "sage": lambda: OnNodes(gnn.SAGEConv(H, H), plain),
    "sage_max": lambda: OnNodes(gnn.SAGEConv(H, H, aggr="max", project=True), plain),
    "graph": lambda: OnNodes(gnn.GraphConv(H, H), plain),
    "gin": lambda: OnNodes(gnn.GINConv(mlp(H), train_eps=True), plain),
    "gine": lambda: OnNodes(gnn.GINEConv(mlp(H), edge_dim=EDGE_FEATURES, train_eps=True), with_edges),
    "gat": lambda: OnNodes(gnn.GATConv(H, H // 2, heads=2), plain),
    "gat_edges": lambda: OnNodes(gnn.GATConv(H, H, edge_dim=EDGE_FEATURES, residual=True), with_edges),
    "gat_without_loops": lambda: OnNodes(
        gnn.GATConv(H, H // 2, heads=2, edge_dim=EDGE_FEATURES, add_self_loops=False), with_edges
    ),
    "gatv2": lambda: OnNodes(gnn.GATv2Conv(H, H // 2, heads=2), plain),
    "gatv2_edges": lambda: OnNodes(gnn.GATv2Conv(H, H, edge_dim=EDGE_FEATURES, share_weights=True), with_edges),
    "transformer": lambda: OnNodes(gnn.TransformerConv(H, H // 2, heads=2, edge_dim=EDGE_FEATURES, beta=True), with_edges),
    "edge": lambda: OnNodes(gnn.EdgeConv(mlp(2 * H)), plain),
    "nnconv": lambda: OnNodes(gnn.NNConv(H, H, nn.Linear(EDGE_FEATURES, H * H)), with_edges),
    "cheb": lambda: OnNodes(gnn.ChebConv(H, H, 2), plain),
    "sg": lambda: OnNodes(gnn.SGConv(H, H, 2), plain),
    "gated": lambda: OnNodes(gnn.GatedGraphConv(H, 2), plain),
    "res_gated": lambda: OnNodes(gnn.ResGatedGraphConv(H, H), plain),
    "tag": lambda: OnNodes(gnn.TAGConv(H, H), plain),  # calls layer.forward
    "agnn": lambda: OnNodes(gnn.AGNNConv(), plain),
}  # fmt: skip
NORMS: dict[str, Callable[[], OnNodes]] = {
    "layer_norm_nodes": lambda: OnNodes(gnn.LayerNorm(H, mode="node"), with_graphs),
    "layer_norm_graphs": lambda: OnNodes(gnn.LayerNorm(H, mode="graph"), with_graphs),
    "graph_norm": lambda: OnNodes(gnn.GraphNorm(H), with_graphs),
    "instance_norm": lambda: OnNodes(gnn.InstanceNorm(H, affine=True), with_graphs),
    "pair_norm": lambda: OnNodes(gnn.PairNorm(), lambda m, h, b: m(h, b.batch)),
    "mean_subtraction": lambda: OnNodes(gnn.MeanSubtractionNorm(), lambda m, h, b: m(h, b.batch)),
    "message_norm": lambda: OnNodes(gnn.MessageNorm(learn_scale=True), lambda m, h, b: m(h, h.roll(1, 1))),
    "torch_layer_norm": lambda: OnNodes(nn.LayerNorm(H), lambda m, h, b: m(h)),
}


class Readout(nn.Module):
    """Edges, nodes and graphs in one pass, an embedding of node types, jumping knowledge, and a chosen pooling."""

    def __init__(self, pool: Callable[[Tensor, Any], Tensor] | nn.Module) -> None:
        super().__init__()
        self.kinds, self.edges = nn.Embedding(4, FEATURES), nn.Linear(EDGE_FEATURES, H)
        self.first = gnn.GINEConv(mlp(FEATURES), edge_dim=H)
        self.second = gnn.GINEConv(mlp(H), edge_dim=H)
        self.jump = gnn.JumpingKnowledge("cat")
        self.narrow, self.pool, self.head = nn.Linear(2 * H, H), pool, mlp(H, 2)

    def forward(self, batch: Any) -> Tensor:
        e = torch.tanh(self.edges(batch.edge_attr))
        first = self.first(batch.x + self.kinds(batch.kind), batch.edge_index, e)
        second = self.second(first, batch.edge_index, e)
        h = self.narrow(self.jump([first, second]))
        if isinstance(self.pool, nn.Module):
            return self.head(self.pool(h, batch.batch, dim_size=batch.num_graphs))
        return self.head(self.pool(h, batch))


POOLINGS: dict[str, Callable[[], Any]] = {
    "mean": lambda: lambda h, b: gnn.global_mean_pool(h, b.batch, b.num_graphs),
    "add": lambda: lambda h, b: gnn.global_add_pool(h, b.batch, b.num_graphs),
    "max": lambda: lambda h, b: gnn.global_max_pool(h, b.batch, b.num_graphs),
    "attention": lambda: gnn.AttentionalAggregation(nn.Linear(H, 1), nn.Linear(H, H)),
    "softmax": lambda: gnn.SoftmaxAggregation(learn=True),
    "power_mean": lambda: gnn.PowerMeanAggregation(learn=True),
    "several": lambda: gnn.MultiAggregation(
        ["mean", "std", gnn.SoftmaxAggregation(learn=True)], mode="proj",
        mode_kwargs={"in_channels": H, "out_channels": H},
    ),
}  # fmt: skip


def loss_of(module: nn.Module, batch: Any) -> Tensor:
    out = module(batch).flatten(1)
    return (out - torch.sin(torch.arange(out.shape[1], dtype=out.dtype))).square().sum(1).mean()


def gradients_alone(module: nn.Module, graphs: Sequence[Any]) -> list[list[Tensor]]:
    """A plain loop: each graph in a batch of its own."""
    parameters, found = [p for p in module.parameters() if p.requires_grad], []
    for one in graphs:
        grads = torch.autograd.grad(loss_of(module, Batch.from_data_list([one])), parameters, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    return found


def engine_sum(
    module: nn.Module,
    graphs: Sequence[Any],
    bound: float,
    weights: Tensor | None = None,
    rows: RowMemory | None = None,
) -> list[Tensor]:
    batch = Batch.from_data_list(list(graphs))
    with GradientEngine(
        module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows
    ) as engine:
        engine.backward(loss_of(module, batch), units_of_batch(batch, len(graphs)), weights)
        return engine.clipped_sum()


def assert_matches(module: nn.Module, graphs: Sequence[Any], rows: RowMemory | None = None) -> None:
    gradients = gradients_alone(module, graphs)
    norms = torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients])
    bound = float(norms.quantile(0.5))
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    assert relative_error(engine_sum(module, graphs, bound, rows=rows), truth) < 5e-5


@pytest.mark.parametrize("graphs", [ORDINARY, ODD], ids=["ordinary", "odd"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *NORMS])
def test_layer_matches_the_loop_over_graphs(name: str, graphs: list[Data]) -> None:
    torch.manual_seed(1)
    module = {**CONVOLUTIONS, **NORMS}[name]()
    rows = RowMemory()
    for one in [
        graph(5, 8, loops=1),
        graph(4, 11, loops=1),
    ]:  # as the self-check does: single graphs tell the kinds apart
        with contextlib.suppress(PrivacyError):  # a weight read by the module around its layer: followed from then on
            engine_sum(module, [one], 1.0, rows=rows)
        engine_sum(module, [one], 1.0, rows=rows)
    assert_matches(module, graphs, rows)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_pooling_matches_the_loop_over_graphs(name: str) -> None:
    torch.manual_seed(2)
    assert_matches(Readout(POOLINGS[name]()), ORDINARY)


@pytest.mark.parametrize(
    "layer, reason",
    [
        (gnn.TAGConv(H, H), r"layer\.forward\(x\) instead of layer\(x\)"),
        (gnn.ARMAConv(H, H), "saw 1 rows along axis 0"),
    ],
    ids=["bypasses hooks", "rows on another axis"],
)
def test_what_cannot_be_followed_is_refused(layer: nn.Module, reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason):
        engine_sum(OnNodes(layer, plain), ORDINARY, 1.0)


# --- sensitivity ------------------------------------------------------------------------------------------------------

EVERYTHING = ["gatv2_edges", "gine", "graph_norm", "layer_norm_graphs", "message_norm", "res_gated"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_graph_weighs_the_same_whatever_is_beside_it(name: str) -> None:
    torch.manual_seed(3)
    module = {**CONVOLUTIONS, **NORMS}[name]()
    alone = engine_sum(module, [ORDINARY[0]], 0.3)
    others = [[graph(1, 0)], [graph(9, 30, 5)], [ORDINARY[1], graph(2, 1)], [scaled(ORDINARY[2], 1e4)]]
    for beside in others:
        weights = torch.tensor([1.0] + [0.0] * len(beside))
        assert relative_error(engine_sum(module, [ORDINARY[0], *beside], 0.3, weights), alone) < 5e-5


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e38])
@pytest.mark.parametrize("name", [*EVERYTHING, "gat_edges", "transformer"])
def test_a_graph_that_is_not_finite_spares_the_others(name: str, bad: float) -> None:
    torch.manual_seed(4)
    module = {**CONVOLUTIONS, **NORMS}[name]()
    poison = scaled(ORDINARY[2], 1.0)
    poison.x[1, 2] = bad
    good = [ORDINARY[0], ORDINARY[1]]
    one, other = engine_sum(module, good, 0.3), engine_sum(module, [good[0], poison, good[1]], 0.3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)]).norm()
    assert all(bool(torch.isfinite(g).all()) for g in other)
    assert float(moved) <= 0.3 * (1 + 1e-5)


def scaled(one: Data, factor: float) -> Data:
    copy = one.clone()
    copy.x = one.x * factor
    return copy


def test_stand_ins_add_nothing() -> None:
    module = CONVOLUTIONS["gat_edges"]()
    assert all(float(g.abs().max()) == 0 for g in engine_sum(module, ORDINARY, 1.0, torch.zeros(4)))


def test_a_norm_without_the_batch_vector_is_refused() -> None:
    module = OnNodes(gnn.GraphNorm(H), lambda m, h, b: m(h))
    with pytest.raises(PrivacyError, match=r"layer \(GraphNorm\) couples the units"):
        engine_sum(module, ORDINARY, 1.0)


# --- which kind of rows a layer sees ------------------------------------------------------------------------------------

EQUAL_TOTALS = [graph(6, 4), graph(3, 5)]  # nine nodes and nine edges, shared out differently


def test_equal_numbers_of_nodes_and_edges_are_refused_while_nothing_told_them_apart() -> None:
    with pytest.raises(PrivacyError, match="can be edges or nodes of this batch"):
        engine_sum(CONVOLUTIONS["gine"](), EQUAL_TOTALS, 1.0)


def test_equal_numbers_of_nodes_and_edges_are_told_apart_by_one_graph_seen_before() -> None:
    torch.manual_seed(5)
    module, rows = CONVOLUTIONS["gine"](), RowMemory()
    engine_sum(module, [graph(5, 8)], 1.0, rows=rows)
    assert_matches(module, EQUAL_TOTALS, rows)


def test_equal_maps_need_not_be_told_apart() -> None:
    torch.manual_seed(6)
    assert_matches(CONVOLUTIONS["gine"](), [graph(4, 4), graph(6, 6)])


def test_rows_of_no_kind_are_refused() -> None:
    module = OnNodes(nn.Linear(H, H), lambda m, h, b: torch.cat([m(h[:-1]), h[-1:]]))
    with pytest.raises(PrivacyError, match=r"saw 19 rows.*4 units, 20 nodes, 38 edges"):
        engine_sum(module, ORDINARY, 1.0)


def test_a_layer_that_changes_its_kind_of_rows_is_refused() -> None:
    class Fickle(OnNodes):
        use_edges = False

        def forward(self, batch: Any) -> Tensor:
            index = batch.edge_index[0]
            h = self.encode(batch.x)
            h = self.layer(h[index])[: len(h)] if self.use_edges else self.layer(h)
            return gnn.global_mean_pool(self.decode(h), batch.batch, batch.num_graphs)

    module, rows = Fickle(nn.Linear(H, H), plain), RowMemory()
    engine_sum(module, ORDINARY, 1.0, rows=rows)
    module.use_edges = True
    with pytest.raises(PrivacyError, match="which are edges of this batch, and nodes or units .5 rows each. before"):
        engine_sum(module, ORDINARY, 1.0, rows=rows)


def test_memory_keeps_what_every_batch_allows() -> None:
    rows = RowMemory()

    def units(nodes: list[int], edges: list[int]) -> UnitMap:
        kinds = {
            name: torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for name, n in [("n", nodes), ("e", edges)]
        }
        return UnitMap(len(nodes), kinds=kinds)

    # Three rows for each of two units, or one for each of six nodes: the fewest, until a batch shows otherwise.
    assert torch.equal(rows.resolve("layer", 0, 6, units([2, 4], [5, 5])).owners(6), torch.tensor([0, 0, 1, 1, 1, 1]))
    assert rows.undecided(units([4], [1]))
    assert rows.would_help(units([4], [1]))
    assert not rows.would_help(units([3], [1]))
    assert torch.equal(rows.resolve("layer", 0, 3, units([4], [1])).owners(3), torch.zeros(3, dtype=torch.int64))
    assert not rows.undecided(units([4], [1]))
    assert torch.equal(rows.resolve("layer", 0, 6, units([2, 4], [5, 5])).owners(6), torch.tensor([0, 0, 0, 1, 1, 1]))


def test_a_batch_of_another_number_of_graphs_is_refused() -> None:
    with pytest.raises(PrivacyError, match="4 graphs for 5 samples"):
        units_of_batch(Batch.from_data_list(ORDINARY), 5)


def test_edges_between_graphs_are_refused() -> None:
    batch = Batch.from_data_list(ORDINARY)
    batch.edge_index = torch.cat([batch.edge_index, torch.tensor([[0], [19]])], 1)
    with pytest.raises(PrivacyError, match="an edge joins two graphs"):
        units_of_batch(batch, 4)


def test_other_batches_have_the_batch_on_axis_0() -> None:
    for batch in ({"a": [torch.zeros(4)]}, (1, "text"), None, torch.zeros(5, 2)):
        assert units_of_batch(batch, 4).counts() == {"units": 4}
    assert units_of_batch((torch.zeros(4, 2), 1), 4).counts() == {"units": 4, "axis 1 of tensor 0": 8}


def test_a_graph_batch_is_found_inside_other_things() -> None:
    batch = {"graph": (Batch.from_data_list(ORDINARY), torch.zeros(4))}
    assert units_of_batch(batch, 4).counts()["nodes"] == 20
    pair = [Batch.from_data_list(ORDINARY), Batch.from_data_list(ODD[:4])]
    assert units_of_batch(pair, 4).counts()["graph batch 1: nodes"] == 13


def test_several_types_of_nodes_and_edges() -> None:
    """A heterogeneous batch: SAGE between two node types, each type with rows of its own."""

    def hetero(papers: int, authors: int, seed: int) -> HeteroData:
        random, data = torch.Generator().manual_seed(seed), HeteroData()
        data["paper"].x = torch.randn(papers, FEATURES, generator=random)
        data["author"].x = torch.randn(authors, FEATURES, generator=random)
        for source, relation, target, counts in [
            ("author", "writes", "paper", (authors, papers)),
            ("paper", "by", "author", (papers, authors)),
        ]:
            index = [torch.randint(c, (papers + 2,), generator=random) for c in counts]
            data[source, relation, target].edge_index = torch.stack(index)
        return data

    class Hetero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = gnn.HeteroConv(
                {
                    ("author", "writes", "paper"): gnn.SAGEConv((FEATURES, FEATURES), H),
                    ("paper", "by", "author"): gnn.GATConv((FEATURES, FEATURES), H, add_self_loops=False),
                }
            )
            self.head = nn.Linear(2 * H, 2)

        def forward(self, batch: Any) -> Tensor:
            h = self.conv(batch.x_dict, batch.edge_index_dict)
            pools = [gnn.global_mean_pool(h[k], batch[k].batch, batch.num_graphs) for k in ("paper", "author")]
            return self.head(torch.cat(pools, 1).tanh())

    torch.manual_seed(7)
    assert_matches(Hetero(), [hetero(3, 5, 0), hetero(7, 2, 1), hetero(4, 6, 2)])

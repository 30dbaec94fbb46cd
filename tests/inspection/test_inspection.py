"""The report of an inspection: what it says of each layer, and that it finds every kind of problem without raising."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import lightning_dp
from lightning_dp import PrivacyConfigError, inspect
from lightning_dp.inspection import Inspection, InspectionRow


class Own(nn.Module):
    """A leaf with arithmetic of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) * self.weight


class Mixed(nn.Module):
    """One layer for each way in which the engine treats parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale = nn.Linear(6, 8), nn.Parameter(torch.randn(8))
        self.positions, self.own = nn.Embedding(5, 8), Own(8)
        self.frozen, self.unused = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)
        self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) * self.scale + self.positions(torch.arange(5))
        return self.head(self.twice(self.twice(self.own(self.frozen(h)))).mean(1))


def rows_of(report: Inspection) -> dict[str, InspectionRow]:
    return {row.path: row for row in report.rows}


def names_of(report: Inspection) -> set[str]:
    return {problem.name for problem in report.problems}


def test_every_way_is_told_apart() -> None:
    torch.manual_seed(0)
    model = Mixed()
    report = inspect(model, torch.randn(4, 5, 6))
    rows = rows_of(report)
    assert {path: row.way for path, row in rows.items()} == {
        "": "bare parameter",
        "embed": "rule",
        "positions": "shared",
        "own": "fallback",
        "frozen": "frozen",
        "unused": "not reached",
        "twice": "rule",
        "head": "rule",
    }
    assert report.ok
    assert report.units == 4
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.trainable == report.parameters - 72
    assert (rows["twice"].calls, rows["head"].calls) == (2, 1)
    assert rows["head"].route == "direct"  # one position a sample
    assert rows["head"].cost == 1.0
    assert rows["embed"].route in {"gram", "held", "streamed"}
    assert rows["embed"].cost is not None
    assert rows["embed"].cost > 1
    assert rows["own"].cost is None


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    model = Mixed().train()
    before, keys = copy.deepcopy(model.state_dict()), list(model._forward_hooks)
    state = torch.get_rng_state()
    inspect(model, torch.ones(4, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model._forward_hooks) == keys
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and isinstance(p, nn.Parameter) for p in model.parameters())


def test_the_table_names_modules_and_numbers() -> None:
    text = str(inspect(Mixed(), torch.randn(4, 5, 6)))
    lines = text.splitlines()
    assert lines[0].split() == ["module", "type", "parameters", "trained", "gradients", "by", "route", "cost"]
    assert any(line.split()[:4] == ["head", "Linear", "27", "all"] for line in lines)
    assert any(line.startswith("twice") and "rule x2" in line for line in lines)
    assert "Nothing found" in text


def test_inputs_may_be_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.a(x) + self.b(y)}

    x, y = torch.randn(4, 3), torch.randn(4, 4)
    for batch in ((x, y), {"y": y, "x": x}):
        assert inspect(Two(), batch).ok
    with pytest.raises(PrivacyConfigError, match="axis 0"):
        inspect(Two(), {"x": "a word"})


class Classifier(LightningModule):
    def __init__(self, net: nn.Module, loss: str = "mean") -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x).flatten(1)
        self.log("train_loss", out.mean())
        if self.loss == "contrastive":
            return (out @ out.mT).logsumexp(1).mean()
        if self.loss == "leak":
            return F.cross_entropy(out, y) + 0.1 * self.net[0].weight.square().sum()
        if self.loss == "none":
            return torch.zeros(())
        if self.loss == "raises":
            raise KeyError("pixels")
        return F.cross_entropy(out, y, reduction="sum" if self.loss == "sum" else "mean")


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 6, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def test_a_lightning_module_runs_its_own_step_and_logs_nothing() -> None:
    report = inspect(Classifier(linear()), batch())
    assert report.ok, report
    assert [row.path for row in report.rows] == ["net.0", "net.2"]


class Counting(nn.Module):
    """Keeps an average of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        return self.layer(x)


class Scalar(nn.Module):
    """A leaf that answers for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) @ self.weight


class Locked(Classifier):
    def __init__(self) -> None:
        super().__init__(linear())
        self.lock = threading.Lock()


PROBLEMS = {
    "batch_norm": lambda: Classifier(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))),
    "no_trainable_parameters": lambda: Classifier(linear().requires_grad_(False)),
    "lazy_parameters": lambda: Classifier(nn.Sequential(nn.LazyLinear(3))),
    "layer": lambda: Classifier(nn.Sequential(Scalar())),
    "samples": lambda: Classifier(linear(), "contrastive"),
    "leak": lambda: Classifier(linear(), "leak"),
    "state": lambda: Classifier(Counting()),
    "forward": lambda: Classifier(linear(), "raises"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kind_of_problem_is_reported(name: str) -> None:
    torch.manual_seed(0)
    report = inspect(PROBLEMS[name](), batch())
    assert name in names_of(report), report
    assert not report.ok
    assert name in str(report)


def test_a_loss_of_nothing_and_a_wrong_reduction_and_a_module_that_cannot_be_copied() -> None:
    assert not inspect(Classifier(linear(), "none"), batch()).ok
    assert "loss_reduction" in str(inspect(Classifier(linear(), "sum"), batch()))
    assert inspect(Classifier(linear(), "sum"), batch(), loss_reduction="sum").ok
    report = inspect(Locked(), batch())
    assert names_of(report) == {"forward"}
    assert "deep copy" in str(report)


def test_all_problems_at_once() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), Scalar5(), nn.Linear(5, 3))
    model = Classifier(net)
    model.words = nn.Embedding(3, 3, sparse=True)
    report = inspect(model, batch())
    assert {"batch_norm", "sparse_embedding", "layer"} <= names_of(report)
    assert rows_of(report)["net.2"].way == "refused"
    assert rows_of(report)["net.0"].way == "rule"  # what works is shown all the same


class Scalar5(Scalar):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.randn(5, 5))


def test_batch_norm_has_one_message_with_the_cure_and_none_after_it() -> None:
    model = Classifier(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    report = inspect(model, batch())
    assert names_of(report) == {"batch_norm"}
    assert "lightning_dp.replace_batch_norm" in report.problems[0].message
    assert inspect(lightning_dp.replace_batch_norm(model), batch()).ok


def test_dropout_is_no_problem() -> None:
    assert inspect(nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)), torch.randn(6, 6)).ok


def test_one_sample_says_nothing_about_others() -> None:
    report = inspect(Classifier(linear(), "contrastive"), tuple(t[:1] for t in batch()))
    assert "samples" not in names_of(report)


class OtherNames(LightningModule):
    """Lightning passes the batch's number whatever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def training_step(self, rows: tuple[Tensor, Tensor], i: int) -> Tensor:
        assert i == 0
        return F.cross_entropy(self.head(rows[0]), rows[1])


def test_the_step_gets_what_lightning_gives_it() -> None:
    assert inspect(OtherNames(), (torch.randn(6, 4), torch.arange(6) % 2)).ok


class OnGraphs(LightningModule):
    def __init__(self, mean_over: str) -> None:
        super().__init__()
        gnn = pytest.importorskip("torch_geometric").nn
        self.conv, self.pool, self.head = gnn.GATConv(3, 8, dropout=0.5), gnn.global_mean_pool, nn.Linear(8, 2)
        self.mean_over = mean_over

    def training_step(self, graphs: Any, _: int) -> Tensor:
        h = self.conv(graphs.x, graphs.edge_index).relu()
        if self.mean_over == "nodes":
            return F.cross_entropy(self.head(h), graphs.y[graphs.batch])
        return F.cross_entropy(self.head(self.pool(h, graphs.batch)), graphs.y)


def graph_batch() -> Any:
    data = pytest.importorskip("torch_geometric.data")
    rings = [torch.arange(3 + i) for i in range(6)]
    return data.Batch.from_data_list(
        [
            data.Data(torch.randn(len(nodes), 3), torch.stack([nodes, nodes.roll(1)]), y=torch.tensor([len(nodes) % 2]))
            for nodes in rings
        ]
    )


def test_a_batch_of_graphs_is_taken_apart_into_graphs() -> None:
    report = inspect(OnGraphs("graphs"), graph_batch())
    assert report.ok, str(report)
    assert report.units == 6
    coupled = inspect(OnGraphs("nodes"), graph_batch())
    assert [problem.name for problem in coupled.problems] == ["samples"]


def test_packed_sequences_are_refused_with_the_way_round() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in (3, 2, 1)])
    with pytest.raises(PrivacyConfigError, match="PackedSequence.*Inspect the network with padded sequences"):
        inspect(nn.LSTM(4, 4), {"batch": [packed]})

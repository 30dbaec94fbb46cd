"""Layers that a network calls once for the whole batch: exact where their output meets the samples, or refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, RowMemory
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients

WIDTH, LENGTH = 4, 6


class Network(nn.Module):
    """Samples ``(B, T, WIDTH)``, something shared by all of them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.table = nn.Embedding(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.encode(x) + self.shared(x)))

    def shared(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class OneRow(Network):
    def shared(self, x: Tensor) -> Tensor:
        return self.table(torch.arange(x.shape[1]).unsqueeze(0))


class NoBatchAxis(Network):
    def shared(self, x: Tensor) -> Tensor:
        return self.table(torch.arange(x.shape[1]))


class FirstRowOnly(Network):
    """What an expansion to the batch in the tap would get wrong."""

    def shared(self, x: Tensor) -> Tensor:
        return self.table(torch.arange(x.shape[1]).unsqueeze(0))[0]


class Expanded(Network):
    def shared(self, x: Tensor) -> Tensor:
        return self.table(torch.arange(x.shape[1]).unsqueeze(0)).expand(len(x), -1, -1)


class RelativeBias(Network):
    """As in T5: (T, T, heads) looked up, permuted, used by two layers, and mixed with the samples inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.query, self.again = nn.Embedding(16, 2), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.arange(x.shape[1])
        bias = self.table((t[:, None] - t).abs()).permute(2, 0, 1).unsqueeze(0)
        h = self.attend(self.query(x), self.encode(x), bias)
        return self.head(self.attend(self.again(h), h, bias + torch.tril(torch.ones(len(t), len(t)))))

    def attend(self, q: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, v = (y.unflatten(2, (2, -1)).transpose(1, 2) for y in (q, v))
        out = nn.functional.scaled_dot_product_attention(q, v, v, attn_mask=bias)
        return torch.tanh(out.transpose(1, 2).flatten(2))


class OffsetNetwork(Network):
    """As in Swin V2: a small network over a buffer of offsets, its output picked apart by an index buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.linspace(-1, 1, 11).view(1, 11, 1))
        t = torch.arange(LENGTH)
        self.register_buffer("index", (t[:, None] - t + LENGTH - 1).flatten())
        self.bias = nn.Sequential(nn.Linear(1, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(self.offsets).view(-1)[self.index].view(LENGTH, LENGTH)
        scores = self.encode(x) @ x.transpose(1, 2) + bias
        return self.head(scores.softmax(-1) @ x)


class Normalised(Network):
    """A layer on top of the shared look-up, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)

    def shared(self, x: Tensor) -> Tensor:
        return self.frozen(self.norm(self.table(torch.arange(x.shape[1]).unsqueeze(0))))


class Twice(Network):
    """One table for samples and for positions."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.table((x[..., 0] > 0).long())
        return self.head(torch.tanh(self.encode(x) + tokens + self.table(torch.arange(x.shape[1]).unsqueeze(0))))


class InsideABlock(Network):
    """Handed to a module that has parameters of its own beside its children, and to a leaf that uses it with samples."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return self.inner(x) * self.scale + bias

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return (x + bias) * self.scale

    def __init__(self) -> None:
        super().__init__()
        self.block, self.leaf = self.Block(), self.Leaf()

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table(torch.arange(x.shape[1]).unsqueeze(0))
        return self.head(torch.tanh(self.leaf(self.block(self.encode(x), bias), bias)))


class MaskedByData(Network):
    """Met first by a mask of the batch, which needs no gradient."""

    def shared(self, x: Tensor) -> Tensor:
        return self.table(torch.arange(x.shape[1])) * (x[..., :1] > 0)


class BareTable(Network):
    """A bare parameter picked by an index that is made anew in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, WIDTH))

    def shared(self, x: Tensor) -> Tensor:
        return self.table[torch.arange(x.shape[1])] * torch.linspace(0, 1, x.shape[1]).unsqueeze(1)


class WithoutInputs(Network):
    """Relative positions as Hugging Face's Swin and BEiT have them: a module that is called with sizes, or with nothing."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(2 * LENGTH - 1, WIDTH))

        def forward(self, length: int) -> Tensor:
            t = torch.arange(length)
            return self.table[(t[:, None] - t + length - 1).flatten()].view(1, length, length, WIDTH).mean(2)

    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(1, LENGTH, WIDTH))

        def forward(self) -> Tensor:
            return torch.tanh(self.queries)

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.queries = self.Bias(), self.Queries()

    def shared(self, x: Tensor) -> Tensor:
        return self.bias(x.shape[1]) + self.queries()


class MaskedPositions(Network):
    """A mask over positions, made anew in every pass, where a parameter meets the samples: a row for each of six samples?"""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(WIDTH))

    def shared(self, x: Tensor) -> Tensor:
        return torch.where((torch.arange(x.shape[1]) > 1)[:, None], self.token, torch.tanh(x))


class GivenAMatrix(Network):
    """A leaf without a rule that gets a matrix for the whole batch beside the samples, computed or a parameter."""

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor, mix: Tensor) -> Tensor:
            return torch.tanh(mix @ (x * self.scale))

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.again, self.mix = self.Leaf(), self.Leaf(), nn.Parameter(torch.randn(LENGTH, LENGTH))
        self.mix.requires_grad_(False)

    def shared(self, x: Tensor) -> Tensor:
        return self.leaf(x, torch.tril(torch.ones(LENGTH, LENGTH))) + self.again(x, self.mix)


class NormalisedWeight(Network):
    """Its weight is computed from frozen parameters and has a row for each of six samples; its bias is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, LENGTH))
        for name, parameter in self.wide.named_parameters():
            parameter.requires_grad_(name == "bias")

    def shared(self, x: Tensor) -> Tensor:
        return torch.tanh(self.wide(x))[..., :WIDTH]


NETWORKS: list[Callable[[], Network]] = [
    OneRow, NoBatchAxis, FirstRowOnly, Expanded, RelativeBias, OffsetNetwork, Normalised, Twice, InsideABlock,
    MaskedByData, BareTable, WithoutInputs, MaskedPositions,
    GivenAMatrix, NormalisedWeight,
]  # fmt: skip


def engine_sum(
    module: nn.Module, x: Tensor, y: Tensor, bound: float, rows: RowMemory, weights: Any = None
) -> list[Tensor]:
    with GradientEngine(
        module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows
    ) as engine:
        engine.expect(len(x))
        engine.backward(squared_loss(module, x, y), len(x), weights)
        return engine.clipped_sum()


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_matches_the_loop_at_every_batch_size(kind: Callable[[], Network]) -> None:
    """Batch sizes that divide the length among them: 1, 2, 3 and 6 rows could each be taken for whole samples."""
    torch.manual_seed(1)
    module, rows = kind(), RowMemory()
    for size in (1, 2, 3, 4, 6, 12, 1):
        x, y = torch.randn(size, LENGTH, WIDTH), torch.linspace(-1, 1, size)
        gradients = unit_gradients(module, squared_loss, x, y)
        bound = float(torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients]).median())
        truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
        assert relative_error(engine_sum(module, x, y, bound, rows), truth) < 5e-5, size


def test_a_layer_that_centres_the_batch_is_refused_at_every_batch_size() -> None:
    """Its input has a row for each sample in every batch, so that it is never taken for shared."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) * self.scale

    module, rows = Centred(), RowMemory()
    for size in (1, 4, 6):
        x, y = torch.randn(size, LENGTH, WIDTH), torch.linspace(-1, 1, size)
        if size == 1:
            engine_sum(module, x, y, 1.0, rows)
            continue
        with pytest.raises(PrivacyError, match="couples the samples"):
            engine_sum(module, x, y, 1.0, rows)


def test_a_unit_weighs_the_same_whatever_is_beside_it() -> None:
    torch.manual_seed(2)
    module, rows = RelativeBias(), RowMemory()
    x, y = torch.randn(4, LENGTH, WIDTH), torch.linspace(-1, 1, 4)
    alone = engine_sum(module, x[:1], y[:1], 0.1, rows)
    beside = engine_sum(module, x, y, 0.1, rows, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert relative_error(beside, alone) < 5e-5


def test_a_sample_that_is_not_finite_spares_the_others() -> None:
    torch.manual_seed(3)
    module, rows = RelativeBias(), RowMemory()
    x, y = torch.randn(3, LENGTH, WIDTH), torch.linspace(-1, 1, 3)
    engine_sum(module, x[:1], y[:1], 0.1, rows)
    good = engine_sum(module, x[:2], y[:2], 0.1, rows)
    x[2, 1, 1] = float("inf")
    moved = [a - b for a, b in zip(engine_sum(module, x, y, 0.1, rows), good, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) < 1e-5


def test_rows_that_may_be_shared_are_refused_while_nothing_told() -> None:
    module, x, y = NoBatchAxis(), torch.randn(3, LENGTH, WIDTH), torch.zeros(3)
    with pytest.raises(PrivacyError, match="table .Embedding. saw 6 rows for 3 units: several for each, or rows that"):
        engine_sum(module, x, y, 1.0, RowMemory())


def test_a_backward_pass_on_other_units_than_announced_is_refused() -> None:
    module, x = OneRow(), torch.randn(4, LENGTH, WIDTH)
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.expect(2)
        loss = squared_loss(module, x, torch.zeros(4))
        with pytest.raises(PrivacyConfigError, match="announced for"):
            engine.backward(loss, 4)


def test_without_announcement_it_is_refused_as_before() -> None:
    module, x = OneRow(), torch.randn(4, LENGTH, WIDTH)
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyError, match=r"table \(Embedding\) saw 1 rows"),
    ):
        engine.backward(squared_loss(module, x, torch.zeros(4)), 4)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.table((x[..., 0] > 0).long().T)).transpose(0, 1)


def test_samples_on_another_axis_are_not_taken_for_shared_rows() -> None:
    module, rows = SequenceFirst(), RowMemory()
    engine_sum(module, torch.randn(1, LENGTH, WIDTH), torch.zeros(1), 1.0, rows)
    for size in (4, 3, 2):
        with pytest.raises(PrivacyError):
            engine_sum(module, torch.randn(size, LENGTH, WIDTH), torch.zeros(size), 1.0, rows)


class Outputs(OrderedDict[str, Tensor]):
    """A dict whose entries are attributes too, as the outputs of Hugging Face models."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(scaled=x * self.weight)


def test_outputs_keep_their_type() -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = Scale()

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x).scaled

    torch.manual_seed(4)
    module, x, y = Uses(), torch.randn(3, WIDTH), torch.zeros(3)
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 0.5, "flat", [0])
    assert relative_error(engine_sum(module, x, y, 0.5, RowMemory()), truth) < 2e-5

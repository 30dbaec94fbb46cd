"""A privacy unit need not be a row: patients with many images, augmentations, slices, nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from tests.gradients import networks as net
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients

# Networks of every kind of rule: fused rules, the generic rule, bare parameters, folded axes.
NAMES = [
    "linear_2d", "linear_4d", "linear_wide", "conv1d", "conv2d", "conv2d_groups", "conv3d", "embedding",
    "embedding_padding", "embedding_flat", "layer_norm", "group_norm", "instance_norm2d", "rms_norm",
    "generic_functional", "generic_subclass", "conv_transpose2d", "prelu", "bilinear", "embedding_bag_mean",
    "embedding_bag_max", "cnn", "repeated", "repeated_conv",
    "tied", "tokens", "queries", "windows", "in_place", "weight_norm",
]  # fmt: skip
BUILDERS = {**net.LAYERS, **net.NETWORKS}
LAYOUTS = {
    "sorted": [0, 0, 0, 1, 2, 2],
    "mixed": [2, 0, 1, 0, 2, 0, 2],
    "interleaved": [0, 1, 2, 0, 1, 2],
    "alone": [0, 0, 0],
    "one_row_each": [1, 0, 2],
    "unit_without_rows": [0, 2, 2, 0],
}


def row_losses(module: nn.Module, x: Tensor) -> Tensor:
    out = module(x).flatten(1)
    return ((out - torch.sin(torch.arange(out.shape[1], dtype=out.dtype))) ** 2).sum(1)


def inputs(x: Tensor, rows: int) -> Tensor:
    """As many rows as asked for, like the ones that the network came with, no two of them alike."""
    repeated = x[torch.arange(rows) % len(x)]
    if not x.is_floating_point():
        return (repeated + torch.arange(rows).view(-1, *[1] * (x.dim() - 1)) // len(x)) % (int(x.max()) + 1)
    return repeated + 0.1 * torch.randn(repeated.shape)


def loop(module: nn.Module, x: Tensor, rows: Tensor, units: int, bound: float) -> list[Tensor]:
    """The plain loop: the gradient of the sum over one unit's rows, clipped, for one unit after the other."""
    parameters = list(module.parameters())
    gradients = []
    for unit in range(units):
        mine = rows == unit
        if not bool(mine.any()):
            continue
        grads = torch.autograd.grad(row_losses(module, x[mine]).sum(), parameters, allow_unused=True)
        gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    return clipped_sum(gradients, bound, "flat", layer_numbers(module))


def engine_sum(module: nn.Module, x: Tensor, units: UnitMap, rows: Tensor, bound: float) -> list[Tensor]:
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        losses = row_losses(module, x)
        engine.backward(losses.new_zeros(units.num_units).index_add(0, rows, losses).mean(), units)
        return engine.clipped_sum()


@pytest.mark.parametrize("name", NAMES)
def test_ragged_rows_equal_the_plain_loop(name: str) -> None:
    torch.manual_seed(1)
    module, like = BUILDERS[name]()
    for layout, owners in LAYOUTS.items():
        rows = torch.tensor(owners)
        units = int(rows.max()) + 1
        x = inputs(like, len(rows))
        for bound in (0.5, 50.0):
            got = engine_sum(module, x, UnitMap(units, rows), rows, bound)
            assert relative_error(got, loop(module, x, rows, units, bound)) < 5e-5, layout


@pytest.mark.parametrize("name", ["cnn", "tokens", "generic_functional", "tied"])
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    torch.manual_seed(2)
    module, x = BUILDERS[name]()
    rows = torch.tensor(LAYOUTS["mixed"])
    x = inputs(x, len(rows))
    order = torch.randperm(len(rows))
    one = engine_sum(module, x, UnitMap(3, rows), rows, 0.5)
    other = engine_sum(module, x[order], UnitMap(3, rows[order]), rows[order], 0.5)
    assert relative_error(one, other) < 2e-5


@pytest.mark.parametrize("name", ["cnn", "tokens", "generic_functional", "tied", "windows"])
def test_consecutive_rows_need_no_map(name: str) -> None:
    torch.manual_seed(3)
    module, x = BUILDERS[name]()
    x, rows = inputs(x, 6), torch.tensor([0, 0, 1, 1, 2, 2])
    one = engine_sum(module, x, UnitMap(3), rows, 0.5)
    other = engine_sum(module, x, UnitMap(3, rows), rows, 0.5)
    assert relative_error(one, other) < 2e-5


def test_a_graph_is_one_unit_of_many_nodes() -> None:
    """Message passing within a unit couples its rows, which is allowed; the layers see rows in any order."""
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    rows, x = torch.tensor([1, 0, 1, 0, 0]), torch.randn(5, 4)
    same = (rows[:, None] == rows[None, :]).float()

    def losses(x: Tensor, same: Tensor) -> Tensor:
        hidden = same @ torch.tanh(module[0](x))
        return (same @ module[2](hidden)).square().sum(1)

    with GradientEngine(module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(torch.zeros(2).index_add(0, rows, losses(x, same)).mean(), UnitMap(2, rows))
        got = engine.clipped_sum()
    parameters = list(module.parameters())
    gradients = [
        list(torch.autograd.grad(losses(x[rows == u], torch.ones(2 + (u == 0), 2 + (u == 0))).sum(), parameters))
        for u in range(2)
    ]
    assert relative_error(got, clipped_sum(gradients, 0.5, "flat", layer_numbers(module))) < 2e-5


@settings(max_examples=100)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=12), fold=st.integers(1, 3), repeat=st.booleans())
def test_grouping_keeps_every_row_with_its_unit(rows: list[int], fold: int, repeat: bool) -> None:
    units = UnitMap(5, torch.tensor(rows))
    tensor = torch.arange(1.0, len(rows) * fold + 1)
    grouped = units.by_unit(tensor, repeat=repeat)
    owner = torch.tensor(rows).repeat_interleave(fold)
    most = max(rows.count(u) for u in range(5)) * fold
    assert grouped.shape == (5, most)
    for unit in range(5):
        mine = tensor[owner == unit]
        assert torch.equal(grouped[unit, : len(mine)], mine)
        filled = grouped[unit, len(mine) :]
        if len(mine):
            assert torch.equal(filled, (mine[0] if repeat else torch.zeros(())).expand(most - len(mine)))
    assert torch.equal(units.per_row(torch.arange(5.0), len(tensor)), owner.float())


def test_identity_map() -> None:
    units = UnitMap(3)
    assert units.fold(6, "x") == 2
    assert torch.equal(units.by_unit(torch.arange(6)), torch.tensor([[0, 1], [2, 3], [4, 5]]))
    assert torch.equal(units.per_row(torch.arange(3), 6), torch.tensor([0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize(
    ("units", "rows"),
    [(0, None), (-1, None), (2, [0, 2]), (2, [-1, 0]), (2, [[0, 1]]), (2, [0.0, 1.0])],
)
def test_impossible_maps_are_refused(units: int, rows: list[int] | None) -> None:
    with pytest.raises(PrivacyConfigError):
        UnitMap(units, None if rows is None else torch.tensor(rows))


@pytest.mark.parametrize("units", [UnitMap(4), UnitMap(4, torch.tensor([0, 1, 2, 3, 3]))])
def test_rows_that_cannot_be_shared_out_are_refused(units: UnitMap) -> None:
    with pytest.raises(PrivacyError, match="the encoder saw 7 rows"):
        units.by_unit(torch.randn(7, 2), "the encoder")


# --- a loss over samples, of which a unit owns several ----------------------------------------------------------------
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["cnn", "tokens", "generic_functional", "tied", "repeated_conv", "layer_norm"])
def test_a_loss_over_samples_gives_each_unit_the_mean_of_its_own(name: str, reduction: Literal["mean", "sum"]) -> None:
    """Against a loop over units, each alone: whoever else is in the batch, and however the loss is reduced."""
    torch.manual_seed(6)
    module, like = BUILDERS[name]()
    parameters = list(module.parameters())
    for layout, owners in LAYOUTS.items():
        rows = torch.tensor(owners)
        count = int(rows.max()) + 1
        units = UnitMap(count, rows, torch.bincount(rows, minlength=count))
        x = inputs(like, len(rows))
        gradients = []
        for unit in rows.unique():
            grads = torch.autograd.grad(row_losses(module, x[rows == unit]).mean(), parameters, allow_unused=True)
            gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
        for bound in (0.5, 50.0):
            with GradientEngine(
                module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, loss_reduction=reduction
            ) as engine:
                losses = row_losses(module, x)
                engine.backward(losses.mean() if reduction == "mean" else losses.sum(), units)
                truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
                assert relative_error(engine.clipped_sum(), truth) < 5e-5, layout


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_copies_of_a_sample_are_averaged(reduction: Literal["mean", "sum"]) -> None:
    """As many rows for each unit, without a map of rows: the same as with one."""
    torch.manual_seed(7)
    module, x = BUILDERS["cnn"]()
    x, rows, terms = inputs(x, 6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.full((3,), 2)
    sums = []
    for units in (UnitMap(3, terms=terms), UnitMap(3, rows, terms)):
        with GradientEngine(
            module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1, loss_reduction=reduction
        ) as engine:
            losses = row_losses(module, x)
            engine.backward(losses.mean() if reduction == "mean" else losses.sum(), units)
            sums.append(engine.clipped_sum())
    assert relative_error(*sums) < 2e-5


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=8), reduction=st.sampled_from(["mean", "sum"]))
def test_the_scale_of_a_unit_undoes_the_reduction(counts: list[int], reduction: Literal["mean", "sum"]) -> None:
    scale = UnitMap(len(counts), terms=torch.tensor(counts)).loss_scale(reduction)
    assert isinstance(scale, Tensor)
    weight = 1 / max(1, sum(counts)) if reduction == "mean" else 1.0  # of one term in the loss
    shares = scale * torch.tensor(counts) * weight
    assert shares.tolist() == pytest.approx([float(k > 0) for k in counts])


def test_without_terms_a_unit_is_one_term() -> None:
    assert UnitMap(5).loss_scale("mean") == 5.0
    assert UnitMap(5).loss_scale("sum") == 1.0


@pytest.mark.parametrize("terms", [[1, 1, 1], [1, -1], [1.0, 1.0], [[1, 1]]])
def test_impossible_terms_are_refused(terms: list[float]) -> None:
    with pytest.raises(PrivacyConfigError, match="terms"):
        UnitMap(2, terms=torch.tensor(terms))


class SharedTable(nn.Module):
    """Looks positions up once for the whole batch, as many transformers do."""

    def __init__(self, make_index: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.table, self.head, self.make_index = nn.Embedding(8, 4), nn.Linear(4, 2), make_index

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.table(self.make_index(len(x))))


def test_a_table_shared_by_the_batch_is_refused_by_name() -> None:
    module, x = SharedTable(lambda _: torch.arange(8)), torch.randn(5, 8, 4)
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyError, match=r"table \(Embedding\) saw 8 rows.*expanded to one row per sample"),
    ):
        engine.backward(module(x).square().mean(), 5)


def test_a_table_expanded_to_one_row_a_sample_is_right() -> None:
    torch.manual_seed(5)
    module, x = SharedTable(lambda n: torch.arange(8).expand(n, 8)), torch.randn(5, 8, 4)
    rows = torch.arange(5)
    assert relative_error(engine_sum(module, x, UnitMap(5), rows, 0.5), loop(module, x, rows, 5, 0.5)) < 2e-5


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("module", [SharedTable(lambda _: torch.arange(8)), SequenceFirst()])
def test_a_wrong_axis_that_divides_evenly_is_caught_when_the_batch_size_changes(module: nn.Module) -> None:
    """Eight positions for four units, then for two: only one of them can be the batch axis' folding."""
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(module(torch.randn(4, 8, 4)).square().mean(), 4)
        with pytest.raises(PrivacyError, match="axis 0 is not the batch axis"):
            engine.backward(module(torch.randn(2, 8, 4)).square().mean(), 2)


def test_a_wrong_axis_is_caught_also_where_units_own_unlike_numbers_of_samples() -> None:
    module = SharedTable(lambda _: torch.arange(8))
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(
            module(torch.randn(4, 8, 4)).square().mean(), UnitMap(2, torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1]))
        )
        with pytest.raises(PrivacyError, match="axis 0 is not the batch axis"):
            engine.backward(
                module(torch.randn(2, 8, 4)).square().mean(), UnitMap(1, torch.tensor([0, 0]), torch.tensor([2]))
            )


def test_one_layer_at_two_folds_in_a_pass_is_allowed() -> None:
    """The same layer on whole samples and on their two halves: each call keeps its own number of rows per unit."""

    class TwoFolds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            halves = self.layer(x.reshape(-1, 3)).reshape(len(x), 2, 3).sum(1)
            return self.layer(halves)

    module = TwoFolds()
    batches = [(torch.randn(size, 6), torch.linspace(-1, 1, size)) for size in (4, 3)]
    truths = [clipped_sum(unit_gradients(module, squared_loss, x, y), 0.5, "flat", [0, 0]) for x, y in batches]
    with GradientEngine(module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1) as engine:
        for (x, y), truth in zip(batches, truths, strict=True):
            engine.backward(squared_loss(module, x, y), len(x))
            assert relative_error(engine.clipped_sum(), truth) < 2e-5
            engine.discard()

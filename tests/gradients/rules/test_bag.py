"""Bags of embeddings agree with the plain loop, in every layout and mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.rules.bag import TableRows
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps

VOCABULARY, WIDTH = 6, 3
MODES = ("sum", "mean", "max")


def table(mode: str, ties: bool = False, **options: Any) -> nn.EmbeddingBag:
    module = nn.EmbeddingBag(VOCABULARY, WIDTH, mode=mode, **options)
    if ties:  # equal entries: the maximum is taken at one of several rows
        with torch.no_grad():
            module.weight.round_()
    return module


@settings(max_examples=60)
@given(
    data=st.data(),
    units=unit_maps(),
    mode=st.sampled_from(MODES),
    padding=st.sampled_from([None, 0, 2, -1]),
    ties=st.booleans(),
    last=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bags_of_any_length_agree(
    data: st.DataObject,
    units: UnitMap,
    mode: str,
    padding: int | None,
    ties: bool,
    last: bool,
    weighted: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    bags = data.draw(row_counts(units))
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=bags, max_size=bags))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    index = torch.randint(0, VOCABULARY, (sum(sizes),))
    module = table(mode, ties, padding_idx=padding, include_last_offset=last)
    weights = torch.randn(sum(sizes)) if weighted and mode == "sum" else None
    offsets = offsets if last else offsets[:-1]
    assert_agrees(module, lambda m: m(index, offsets, weights), units)


@settings(max_examples=40)
@given(
    data=st.data(),
    units=unit_maps(),
    mode=st.sampled_from(MODES),
    length=st.integers(1, 5),
    padding=st.sampled_from([None, 1]),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_bags_of_one_length_agree(
    data: st.DataObject,
    units: UnitMap,
    mode: str,
    length: int,
    padding: int | None,
    weighted: bool,
    dtype: torch.dtype,
) -> None:
    shape = (data.draw(row_counts(units)), length)
    index = torch.randint(0, VOCABULARY, shape, dtype=dtype)
    weights = torch.randn(shape) if weighted and mode == "sum" else None
    assert_agrees(table(mode, padding_idx=padding), lambda m: m(index, per_sample_weights=weights), units)


def test_learned_weights_of_the_entries_get_their_gradient() -> None:
    """The weights of a bag's entries are an input like any other: here another layer makes them."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.weigh = table("sum"), nn.Linear(4, 4)

        def forward(self, index: Tensor, x: Tensor) -> Tensor:
            return self.table(index, per_sample_weights=self.weigh(x).softmax(1))

    torch.manual_seed(0)
    index, x = torch.randint(0, VOCABULARY, (5, 4)), torch.randn(5, 4)
    assert_agrees(Weighted(), lambda m: m(index, x), UnitMap(5))


@pytest.mark.parametrize("mode", MODES)
def test_a_bag_used_twice_adds_its_uses_before_the_norm(mode: str) -> None:
    torch.manual_seed(0)
    one, two = torch.randint(0, VOCABULARY, (5, 4)), torch.randint(0, VOCABULARY, (5, 3))
    assert_agrees(table(mode), lambda m: torch.tanh(m(one)) * m(two), UnitMap(5))


def test_a_table_shared_with_an_embedding_agrees() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.single = table("mean"), nn.Embedding(VOCABULARY, WIDTH)
            self.single.weight = self.bag.weight

        def forward(self, index: Tensor) -> Tensor:
            return self.bag(index) * self.single(index[:, 0])

    torch.manual_seed(0)
    index = torch.randint(0, VOCABULARY, (5, 4))
    assert_agrees(Shared(), lambda m: m(index), UnitMap(5))


def test_rows_of_a_unit_that_is_not_finite_are_dropped() -> None:
    rows = TableRows(
        torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([[1.0], [torch.inf]]), 2, torch.Size((3, 1))
    )
    kept = rows.keep(torch.tensor([True, False]))
    assert kept.weighted_sum(torch.ones(2)).flatten().tolist() == [0, 0, 1]
    assert kept.per_unit(0, 2).flatten().tolist() == [0, 0, 1, 0, 0, 0]


def test_a_word_that_cancels_itself_does_not_round_the_others_away() -> None:
    """+1e15 and -1e15 in one table row: summed in turn, they push every other unit's digits out of the float."""
    torch.manual_seed(0)
    module, index, grad = table("sum"), torch.zeros(20, 2, dtype=torch.int64), torch.randn(20, WIDTH)
    weights = torch.ones(20, 2)
    weights[-1] = torch.tensor([1e15, -1e15])

    def total(rows: int) -> Tensor:
        with GradientEngine(
            module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1, loss_reduction="sum"
        ) as engine:
            engine.backward((module(index[:rows], per_sample_weights=weights[:rows]) * grad[:rows]).sum(), rows)
            return engine.clipped_sum()[0]

    assert float((total(20) - total(19)).norm()) <= 1e-4

"""Linear layers and embeddings of any shape agree with the plain loop."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.gradients import UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps

shapes = st.lists(st.integers(1, 4), max_size=3)


@settings(max_examples=60)
@given(
    data=st.data(),
    units=unit_maps(),
    shape=shapes,
    # A weight of one element may cancel by chance; a norm is then rounded up on purpose.
    sizes=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    bias=st.booleans(),
    calls=st.integers(1, 2),
)
def test_any_linear_layer_agrees(
    data: st.DataObject, units: UnitMap, shape: list[int], sizes: tuple[int, int], bias: bool, calls: int
) -> None:
    module = nn.Linear(*sizes, bias=bias)
    x = torch.randn(data.draw(row_counts(units)), *shape, sizes[0])
    assert_agrees(module, lambda m: m(x) if calls == 1 else torch.tanh(m(x)) * m(0.5 * x), units)


@settings(max_examples=60)
@given(
    data=st.data(),
    units=unit_maps(),
    shape=shapes,
    words=st.integers(1, 6),
    padding=st.sampled_from([None, 0, -1]),
    tied=st.booleans(),
)
def test_any_embedding_agrees(
    data: st.DataObject, units: UnitMap, shape: list[int], words: int, padding: int | None, tied: bool
) -> None:
    module = nn.Embedding(words, 3, padding_idx=padding)
    head = nn.Linear(3, words, bias=False)
    if tied:
        head.weight = module.weight
    index = torch.randint(0, words, (data.draw(row_counts(units)), *shape))

    def run(m: nn.Module) -> Tensor:
        return m[1](torch.tanh(m[0](index)))

    assert_agrees(nn.Sequential(module, head), run, units)

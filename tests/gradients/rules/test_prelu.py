"""PReLU and bilinear layers agree with the plain loop."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_dp.gradients import UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps


@settings(max_examples=50)
@given(
    data=st.data(),
    units=unit_maps(),
    channels=st.integers(1, 4),
    shared=st.booleans(),
    shape=st.lists(st.integers(1, 4), max_size=3),
)
def test_prelu_agrees(data: st.DataObject, units: UnitMap, channels: int, shared: bool, shape: list[int]) -> None:
    module = nn.PReLU(1 if shared else channels)
    nn.init.normal_(module.weight)
    x = torch.randn(data.draw(row_counts(units)), channels, *shape)
    assert_agrees(module, lambda m: m(x), units)


def test_prelu_of_rows_without_channels_agrees() -> None:
    torch.manual_seed(0)
    x = torch.randn(6)
    assert_agrees(nn.PReLU(), lambda m: m(x)[:, None], UnitMap(3))


@settings(max_examples=40)
@given(
    data=st.data(),
    units=unit_maps(),
    sizes=st.tuples(*[st.integers(2, 4)] * 3),
    shape=st.lists(st.integers(1, 3), max_size=2),
    bias=st.booleans(),
    named=st.booleans(),
)
def test_bilinear_agrees(
    data: st.DataObject, units: UnitMap, sizes: tuple[int, int, int], shape: list[int], bias: bool, named: bool
) -> None:
    rows = data.draw(row_counts(units))
    module = nn.Bilinear(*sizes, bias=bias)
    left, right = torch.randn(rows, *shape, sizes[0]), torch.randn(rows, *shape, sizes[1])
    assert_agrees(module, lambda m: m(input2=right, input1=left) if named else m(left, right), units)

"""Convolutions of any shape agree with the plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_dp.gradients import UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@settings(max_examples=80)
@given(
    data=st.data(),
    dims=st.sampled_from([1, 1, 2, 2, 3]),
    units=unit_maps(),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "zeros", "same", "reflect", "replicate", "circular"]),
)
def test_any_convolution_agrees(data: st.DataObject, dims: int, units: UnitMap, bias: bool, mode: str) -> None:
    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    kernel, dilation = sizes(1, 3), sizes(1, 2)
    stride = (1,) * dims if mode == "same" else sizes(1, 3)
    padding = "same" if mode == "same" else sizes(0, 2)
    groups, width = data.draw(st.sampled_from([1, 1, 2, 4])), data.draw(st.sampled_from([1, 2]))
    module = KINDS[dims](
        4, width * groups, kernel, stride, padding, dilation, groups, bias,
        padding_mode="zeros" if mode == "same" else mode,
    )  # fmt: skip
    x = torch.randn(data.draw(row_counts(units)), 4, *sizes(5, 7))
    assert_agrees(nn.Sequential(module, nn.Tanh()), lambda m: m(x), units)

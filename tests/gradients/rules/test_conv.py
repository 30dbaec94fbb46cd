"""Convolutions of any shape agree with the plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_dp.gradients import UnitMap
from lightning_dp.gradients.rules import LayerCall
from lightning_dp.gradients.rules.conv import ConvWeight, conv_rule
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


# One call of the library for several units, several calls of it, one for each unit, and patches.
SHAPES = {
    "1d": (nn.Conv1d(8, 16, 5, dilation=2), (300,), 100),
    "2d": (nn.Conv2d(8, 8, 3, padding=1), (16, 17), 100),
    "2d, strided": (nn.Conv2d(16, 8, 3, stride=2, padding=1), (33, 34), 100),
    "2d, groups": (nn.Conv2d(16, 16, 3, padding=1, groups=2), (16, 16), 100),
    "2d, reflected": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (16, 16), 100),
    "3d": (nn.Conv3d(8, 8, 3, padding=1), (7, 7, 7), 100),
    "two calls": (nn.Conv1d(64, 128, 32), (290,), 4),
    "unit by unit": (nn.Conv1d(63, 4, 33), (300,), 1),
    "few positions": (nn.Conv2d(8, 8, 3), (9, 9), 0),
    "channels apart": (nn.Conv2d(6, 8, 3), (20, 20), 0),
    "groups of four": (nn.Conv2d(16, 16, 3, groups=4), (20, 20), 0),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("fold", [1, 2])
def test_every_way_to_the_units_gradients_agrees(name: str, fold: int) -> None:
    torch.manual_seed(0)
    module, size, at_once = SHAPES[name]
    units = UnitMap(6)
    x = torch.randn(6 * fold, module.in_channels, *size)
    call = LayerCall(module, name, (x,), {}, (module(x).detach(),), units, frozenset({"weight"}), torch.float32)
    weight = conv_rule(call)["weight"]
    assert isinstance(weight, ConvWeight)
    assert min(weight.units_a_call, 100) == at_once
    grad = call.grad.view(6, fold, *call.grad.shape[1:])
    for unit, rows in enumerate(x.view(6, fold, *x.shape[1:])):
        (wanted,) = torch.autograd.grad(module(rows), module.weight, grad[unit])
        assert torch.allclose(
            weight.per_unit(unit, unit + 1)[0], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())
        )
        assert torch.allclose(weight.per_unit(0, 6)[unit], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

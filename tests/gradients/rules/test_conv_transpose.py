"""Transposed convolutions of any shape agree with the plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@settings(max_examples=60)
@given(data=st.data(), dims=st.sampled_from([1, 1, 2, 2, 3]), units=unit_maps(), bias=st.booleans())
def test_any_transposed_convolution_agrees(data: st.DataObject, dims: int, units: UnitMap, bias: bool) -> None:
    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    stride, dilation, kernel, padding = sizes(1, 3), sizes(1, 3), sizes(1, 3), sizes(0, 2)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    groups, width = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2]))
    module = KINDS[dims](
        2 * groups, width * groups, kernel, stride, padding, output_padding=extra, groups=groups, bias=bias,
        dilation=dilation,
    )  # fmt: skip
    x = torch.randn(data.draw(row_counts(units)), 2 * groups, *sizes(5, 6))
    assert_agrees(nn.Sequential(module, nn.Tanh()), lambda m: m(x), units)


def test_an_output_size_given_to_the_call_is_what_counts() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(3, 2, 3, stride=3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, output_size=[15, 14])

    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    assert_agrees(Sized(), lambda m: m(x), UnitMap(4))


def test_a_layer_used_twice_adds_its_uses_before_the_norm() -> None:
    torch.manual_seed(0)
    module, x = nn.ConvTranspose1d(2, 2, 3, padding=1), torch.randn(4, 2, 6)
    assert_agrees(module, lambda m: m(torch.tanh(m(x))), UnitMap(4))


def test_a_call_without_batch_axis_is_refused_by_name() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(2, 2, 3))
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyError, match=r"0 \(ConvTranspose2d\) was called without a batch axis"),
    ):
        engine.backward(module(torch.randn(2, 5, 5)).square().mean(), 2)

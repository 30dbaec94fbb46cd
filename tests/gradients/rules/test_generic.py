"""Layers without a rule, and parameters owned beside children, agree with the plain loop in any shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps

shapes = st.lists(st.integers(1, 4), max_size=2)


class Own(nn.Module):
    """A leaf with its own arithmetic; its second input is shared, its outputs are nested."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(width, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, table: Tensor) -> dict[str, list[Tensor]]:
        hidden = torch.sin(x @ self.a) * self.b + table
        return {"outputs": [hidden, hidden.square() * self.b]}


class Beside(nn.Module):
    """Parameters beside a child, used by functions that broadcast, expand and index."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(1, 2, width))
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1, x.shape[-1])
        flat = torch.cat([self.token.expand(len(x), -1, -1), self.layer(flat) * self.scale.exp()], 1)
        return flat[:, :2] + self.shift[:, : flat[:, :2].shape[1]]


@settings(max_examples=40)
@given(data=st.data(), units=unit_maps(), shape=shapes, width=st.integers(1, 4))
def test_leaves_with_arithmetic_of_their_own_agree(
    data: st.DataObject, units: UnitMap, shape: list[int], width: int
) -> None:
    x, table = torch.randn(data.draw(row_counts(units)), *shape, width), torch.randn(1, 3)

    def run(m: nn.Module) -> Tensor:
        first, second = m(x, table)["outputs"]
        return first + second

    assert_agrees(Own(width), run, units)


@settings(max_examples=40)
@given(data=st.data(), units=unit_maps(), shape=shapes, width=st.integers(1, 4))
def test_parameters_beside_children_agree(data: st.DataObject, units: UnitMap, shape: list[int], width: int) -> None:
    x = torch.randn(data.draw(row_counts(units, folds=(1,))), *shape, width)
    assert_agrees(Beside(width), lambda m: m(x), units)


@pytest.mark.parametrize("rows", [4, 3])
def test_an_input_is_never_taken_for_shared_to_make_a_repetition_fit(rows: int) -> None:
    """With its second input as a constant the layer would pass, and couple the batch."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x - y.mean(0)) * self.gamma

    module, x = Centred(), torch.randn(rows, 6)
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyError, match="does not reproduce its output"),
    ):
        engine.backward(module(x, x).square().mean(), rows)

"""Opacus' own attention in both layouts, alone and inside PyTorch's encoder layers, agrees with the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus.layers import DPMultiheadAttention
from opacus.layers.dp_multihead_attention import SequenceBias
from torch import Tensor, nn

from lightning_dp.gradients import UnitMap
from lightning_dp.gradients.layouts import sequence_first
from tests.gradients.rules.agreement import assert_agrees

MAPS = [UnitMap(4), UnitMap(2), UnitMap(3, torch.tensor([0, 2, 0, 1]))]


@pytest.mark.parametrize("units", MAPS, ids=["rows", "pairs", "ragged"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False, "kdim": 5, "vdim": 3}], ids=str
)
def test_attention_agrees(options: dict[str, Any], batch_first: bool, units: UnitMap) -> None:
    """With as many positions as rows, and with other numbers."""
    torch.manual_seed(0)
    module = DPMultiheadAttention(8, 2, batch_first=batch_first, **options)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        key, value = x[..., : options.get("kdim", 8)], torch.tanh(x[..., : options.get("vdim", 8)])
        given = (x[:, :3], key, value)
        out: Tensor = m(*(given if batch_first else (t.transpose(0, 1) for t in given)))[0]
        return out if batch_first else out.transpose(0, 1)

    for positions in (4, 5):
        x = torch.randn(4, positions, 8)
        assert_agrees(module, lambda m, x=x: run(m, x), units)  # type: ignore[misc]


@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layers_that_opacus_gave_its_attention_agree(batch_first: bool) -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=batch_first)
    module.self_attn = DPMultiheadAttention(8, 2, batch_first=batch_first)  # type: ignore[assignment]
    x = torch.randn(4, 5, 8) if batch_first else torch.randn(5, 4, 8)
    assert_agrees(module, lambda m: m(x) if batch_first else m(x).transpose(0, 1), UnitMap(4))


def test_only_layers_with_the_batch_on_axis_1_are_taken_for_such() -> None:
    attention = DPMultiheadAttention(8, 2, add_bias_kv=True)
    assert sequence_first(attention) == {attention.qlinear, attention.klinear, attention.vlinear, attention.out_proj}
    assert not sequence_first(DPMultiheadAttention(8, 2, batch_first=True))


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_sequence_bias_alone_agrees(batch_first: bool) -> None:
    torch.manual_seed(0)
    module, x = SequenceBias(6, batch_first=batch_first), torch.randn(4, 4, 6)
    assert_agrees(module, lambda m: m(x) if batch_first else m(x).transpose(0, 1), UnitMap(2))

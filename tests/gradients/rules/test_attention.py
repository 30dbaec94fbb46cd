"""PyTorch's attention and transformers, as they are, agree with the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.layouts import sequence_first
from lightning_dp.gradients.replay import RandomState
from lightning_dp.gradients.rules import find_rule
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_losses, unit_maps

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")

HEADS, WIDTH = 2, 4


def engine_of(module: nn.Module) -> GradientEngine:
    return GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1)


def causal(length: int, keys: int, kind: str) -> Tensor:
    hidden = torch.ones(length, keys, dtype=torch.bool).triu(1)
    return hidden if kind == "bool" else torch.zeros(length, keys).masked_fill(hidden, -torch.inf)


def padding(rows: int, keys: int, kind: str) -> Tensor:
    hidden = torch.arange(keys) >= torch.randint(1, keys + 1, (rows, 1))
    return hidden if kind == "bool" else torch.zeros(rows, keys).masked_fill(hidden, -1e3)


@settings(max_examples=80)
@given(
    data=st.data(),
    units=unit_maps(),
    crossed=st.sampled_from(["self", "memory", "all different", "other widths"]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    extra=st.booleans(),
    zero=st.booleans(),
    dropout=st.sampled_from([0.0, 0.0, 0.4]),
    need=st.sampled_from(["output", "output", "averaged", "by head", "weights alone"]),
    masked=st.sampled_from(["", "causal", "hint", "each row"]),
    padded=st.booleans(),
    kind=st.sampled_from(["bool", "float"]),
    seed=st.integers(0, 99),
)
def test_any_attention_agrees(
    data: st.DataObject,
    units: UnitMap,
    crossed: str,
    batch_first: bool,
    bias: bool,
    extra: bool,
    zero: bool,
    dropout: float,
    need: str,
    masked: str,
    padded: bool,
    kind: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rows, length = data.draw(row_counts(units)), data.draw(st.integers(1, 4))
    keys = length if crossed == "self" else data.draw(st.integers(1, 4))
    widths = (3, 5) if crossed == "other widths" else (WIDTH, WIDTH)
    module = nn.MultiheadAttention(
        WIDTH, HEADS, dropout, bias, extra, zero, kdim=widths[0], vdim=widths[1], batch_first=batch_first
    )

    def tensor(steps: int, width: int) -> Tensor:
        return torch.randn(rows, steps, width) if batch_first else torch.randn(steps, rows, width)

    query = tensor(length, WIDTH)
    key = query if crossed == "self" else tensor(keys, widths[0])
    value = key if crossed in ("self", "memory") else tensor(keys, widths[1])
    options: dict[str, Any] = {"need_weights": need != "output", "average_attn_weights": need != "by head"}
    if masked:
        mask = causal(length, keys, kind)
        options["attn_mask"] = mask.repeat(rows * HEADS, 1, 1) if masked == "each row" else mask
        # PyTorch's own limit: with extra keys the hint no longer describes the mask.
        options["is_causal"] = masked == "hint" and not (extra or zero)
    if padded:
        options["key_padding_mask"] = padding(rows, keys, kind)

    def run(m: nn.Module) -> Tensor:
        output, weights = m(query, key, value, **options)
        parts = [] if need == "weights alone" else [output if batch_first else output.transpose(0, 1)]
        parts += [] if weights is None else [weights]
        return torch.cat([part.flatten(1) for part in parts], 1)

    assert_agrees(module, run, units, seed)


@settings(max_examples=25)
@given(
    data=st.data(),
    units=unit_maps(),
    batch_first=st.booleans(),
    norm_first=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    activation=st.sampled_from(["relu", "gelu"]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_transformer_agrees(
    data: st.DataObject,
    units: UnitMap,
    batch_first: bool,
    norm_first: bool,
    dropout: float,
    activation: str,
    masked: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rows, source, target = data.draw(row_counts(units)), data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    module = nn.Transformer(WIDTH, HEADS, 2, 1, 6, dropout, activation, batch_first=batch_first, norm_first=norm_first)

    def tensor(steps: int) -> Tensor:
        return torch.randn(rows, steps, WIDTH) if batch_first else torch.randn(steps, rows, WIDTH)

    x, y = tensor(source), tensor(target)
    hidden = padding(rows, source, "bool")
    options: dict[str, Any] = {}
    if masked:
        options = {"tgt_mask": causal(target, target, "bool"), "tgt_is_causal": True}
        options |= {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}

    def run(m: nn.Module) -> Tensor:
        out: Tensor = m(x, y, **options)
        return out if batch_first else out.transpose(0, 1)

    assert_agrees(module, run, units, seed)


class Classifier(nn.Module):
    """An encoder as people write it, in training mode with all of its dropouts."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.batch_first, self.body = batch_first, nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))
        self.table, self.position, self.head = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 6, 8)), nn.Linear(8, 3)

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index) + self.position
        x = self.body(x) if self.batch_first else self.body(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_agrees_in_every_batch_size(batch_first: bool, training: bool) -> None:
    torch.manual_seed(0)
    module = Classifier(batch_first).train(training)
    for rows in (4, 3, 1, 6):  # six positions for six rows, too
        index = torch.randint(0, 9, (rows, 6))
        assert_agrees(module, lambda m, index=index: m(index), UnitMap(rows), rows)
    with engine_of(module) as engine:  # and one engine takes them all
        for rows in (4, 3, 1, 6):
            engine.backward(unit_losses(module(torch.randint(0, 9, (rows, 6))), UnitMap(rows)).mean(), rows)


def test_decoder_layers_alone_agree() -> None:
    torch.manual_seed(0)
    module = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1), 2)
    x, memory = torch.randn(3, 4, 8), torch.randn(5, 4, 8)
    assert_agrees(module, lambda m: m(x, memory).transpose(0, 1), UnitMap(4))


@pytest.mark.parametrize("frozen", ["in_proj_weight", "out_proj.weight", "in_proj_bias", "bias_k"])
def test_frozen_weights_take_no_part(frozen: str) -> None:
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True), torch.randn(4, 5, 4)
    module.get_parameter(frozen).requires_grad_(False)
    assert_agrees(module, lambda m: m(x, x, x)[0], UnitMap(4))


def test_bfloat16_autocast_draws_the_same_masks() -> None:
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), torch.randn(4, 5, 8)

    def gradient(autocast: bool, need_weights: bool) -> Tensor:
        with engine_of(module) as engine:
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = module(x, x, x, need_weights=need_weights)[0].float()
            engine.backward(unit_losses(out, UnitMap(4)).mean(), 4)
            return torch.cat([g.flatten() for g in engine.clipped_sum()])

    for need_weights in (True, False):
        full, low = gradient(False, need_weights), gradient(True, need_weights)
        assert float((full - low).norm()) < 0.05 * float(full.norm())


@pytest.mark.parametrize("need_weights", [True, False])
def test_evaluation_mode_agrees(need_weights: bool) -> None:
    """Fine-tuning without dropout: with detached weights PyTorch may take its inference path, which has no gradient."""
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).eval(), torch.randn(4, 5, 8)
    assert_agrees(module, lambda m: m(x, x, x, need_weights=need_weights)[0], UnitMap(4))
    behind = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    assert_agrees(behind, lambda m: m(x), UnitMap(4))


class Scaled(nn.MultiheadAttention):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(2 * x, x, x)[0]


def test_what_only_looks_like_attention_takes_the_verified_fallback() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 4)
    module = Scaled(4, 2, batch_first=True)
    assert find_rule(module) is None
    assert_agrees(module, lambda m: m(x), UnitMap(4))
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    module.in_proj_weight.data.mul_(3)
    nn.utils.parametrizations.weight_norm(module.out_proj)
    assert find_rule(module) is None
    assert_agrees(module, lambda m: m(x, x, x)[0], UnitMap(4))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_call_without_batch_axis_is_refused_by_name() -> None:
    module, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(4, 4)
    with engine_of(module) as engine, pytest.raises(PrivacyError, match="without a batch axis"):
        engine.backward(module(x, x, x)[0].square().mean(), 4)


@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_that_cannot_be_drawn_again_are_refused_by_name(
    need_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fused kernel that keeps a random state of its own."""
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), torch.randn(4, 5, 4)
    stale = RandomState.capture(torch.device("cpu"))
    torch.rand(7)
    monkeypatch.setattr(RandomState, "capture", classmethod(lambda *_: stale))
    with engine_of(module) as engine, pytest.raises(PrivacyError, match="drops attention weights.*could not be drawn"):
        engine.backward(module(x, x, x, need_weights=need_weights)[0].square().mean(), 4)


def test_other_layers_are_not_taken_for_sequence_first_ones() -> None:
    class Own(nn.TransformerEncoderLayer):
        def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(src.transpose(0, 1)).transpose(0, 1)

    plain = nn.TransformerEncoderLayer(8, 2, 16)
    assert sequence_first(plain) == {plain.linear1, plain.linear2, plain.norm1, plain.norm2} | {
        part for part in plain.children() if isinstance(part, nn.Dropout)
    }
    assert not sequence_first(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    assert not sequence_first(nn.TransformerEncoder(Own(8, 2, 16), 1, norm=nn.LayerNorm(8)))

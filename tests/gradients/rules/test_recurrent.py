"""Recurrent layers and cells, as they are, agree with the plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.replay import RandomState
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_losses, unit_maps

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    "lstm": nn.LSTM,
    "projected": lambda *a, **k: nn.LSTM(*a, proj_size=2, **k),
    "gru": nn.GRU,
}
OUTPUTS = ("output", "last", "both", "cell")


def engine_of(module: nn.Module) -> GradientEngine:
    return GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1)


def rows_first(module: nn.RNNBase, result: Any, rows: int, which: str) -> Tensor:
    """What a loss may use of a recurrent layer's outputs, one row a sample."""
    output, states = result
    states = states if isinstance(states, tuple) else (states,)
    last = torch.cat([s.transpose(0, 1).flatten(1) for s in (states[-1:] if which == "cell" else states)], 1)
    if which in ("last", "cell"):
        return last
    if isinstance(output, PackedSequence):
        flat, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    else:
        flat = output if module.batch_first else output.transpose(0, 1)
    return torch.cat([flat.reshape(rows, -1), last], 1) if which == "both" else flat.reshape(rows, -1)


@settings(max_examples=80)
@given(
    data=st.data(),
    kind=st.sampled_from(sorted(KINDS)),
    units=unit_maps(),
    layers=st.integers(1, 3),
    both_ways=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    given_state=st.booleans(),
    dropout=st.sampled_from([0.0, 0.0, 0.4]),
    packed=st.sampled_from(["", "", "sorted", "unsorted"]),
    steps=st.integers(1, 5),
    which=st.sampled_from(OUTPUTS),
    seed=st.integers(0, 99),
)
def test_any_recurrent_layer_agrees(
    data: st.DataObject,
    kind: str,
    units: UnitMap,
    layers: int,
    both_ways: bool,
    bias: bool,
    batch_first: bool,
    given_state: bool,
    dropout: float,
    packed: str,
    steps: int,
    which: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rows = data.draw(row_counts(units))
    dropout = dropout if layers > 1 else 0.0
    module = KINDS[kind](3, 4, layers, bias=bias, batch_first=batch_first, bidirectional=both_ways, dropout=dropout)
    x: Any = torch.randn(rows, steps, 3) if batch_first else torch.randn(steps, rows, 3)
    if packed:
        lengths = data.draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows))
        lengths = sorted(lengths, reverse=True) if packed == "sorted" else lengths
        x = pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=packed == "sorted")
    state: Any = None
    if given_state:
        sizes = (module.proj_size or 4, 4) if isinstance(module, nn.LSTM) else (4,)
        state = tuple(torch.randn(layers * (1 + both_ways), rows, size) for size in sizes)
        state = state if isinstance(module, nn.LSTM) else state[0]
    assert_agrees(module, lambda m: rows_first(module, m(x, state), rows, which), units, seed)


@settings(max_examples=40)
@given(
    data=st.data(),
    kind=st.sampled_from([nn.RNNCell, nn.LSTMCell, nn.GRUCell]),
    relu=st.booleans(),
    units=unit_maps(),
    bias=st.booleans(),
    given_state=st.booleans(),
    steps=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_cell_called_for_every_step_agrees(
    data: st.DataObject,
    kind: type[nn.RNNCellBase],
    relu: bool,
    units: UnitMap,
    bias: bool,
    given_state: bool,
    steps: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options = {"nonlinearity": "relu"} if relu and kind is nn.RNNCell else {}
    module = kind(3, 4, bias=bias, **options)  # type: ignore[arg-type]
    x = torch.randn(steps, data.draw(row_counts(units)), 3)

    def run(m: nn.Module) -> Tensor:
        state: Any = None
        if given_state:
            state = torch.ones(x.shape[1], 4)
            state = (state, -state) if kind is nn.LSTMCell else state
        seen = []
        for step in x:
            state = m(step, state)
            seen.append(state[0] if kind is nn.LSTMCell else state)
        return torch.cat([*seen, state[1] if kind is nn.LSTMCell else state], 1)

    assert_agrees(module, run, units)


class Tagger(nn.Module):
    """Embedding, recurrence over packed sequences, head: as people write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3, padding_idx=0)
        self.start = nn.Linear(3, 4)
        self.body = KINDS[kind](3, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, index: Tensor, lengths: Tensor) -> Tensor:
        x = self.table(index)
        state = torch.tanh(self.start(x[:, 0])).expand(2, -1, -1)
        state = (state, state.flip(0)) if isinstance(self.body, nn.LSTM) else state
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed, state)[0], batch_first=True)
        return self.head(output)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_tagger_with_a_computed_initial_state_agrees(kind: str) -> None:
    torch.manual_seed(0)
    index, lengths = torch.randint(1, 9, (5, 6)), torch.tensor([2, 6, 3, 1, 6])
    index = index.masked_fill(torch.arange(6) >= lengths[:, None], 0)
    assert_agrees(Tagger(kind), lambda m: m(index, lengths), UnitMap(5))


class Learned(nn.Module):
    """Initial states that are parameters, in the ways in which people spread them over the batch."""

    def __init__(self, kind: type[nn.RNNBase], spread: str) -> None:
        super().__init__()
        self.start, self.spread = nn.Parameter(torch.randn(2, 1, 4)), spread
        self.body = kind(3, 4, 2, batch_first=spread != "repeat")

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        if self.spread == "expand":
            state = self.start.expand(-1, rows, -1).contiguous()
        elif self.spread == "repeat":
            state = torch.tanh(self.start).repeat(1, rows, 1)
        else:
            state = self.start.transpose(0, 1).expand(rows, 2, 4).transpose(0, 1).contiguous()
        state = (state, state * 0.5) if isinstance(self.body, nn.LSTM) else state
        if self.body.batch_first:
            return self.body(x, state)[0]
        return self.body(x.transpose(0, 1), hx=state)[0].transpose(0, 1)


@pytest.mark.parametrize("spread", ["expand", "repeat", "transposed"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_learned_initial_states_agree(kind: type[nn.RNNBase], spread: str) -> None:
    torch.manual_seed(0)
    module = Learned(kind, spread)
    for rows in (5, 4, 2, 1):  # as many rows as features, and as layers
        x = torch.randn(rows, 5, 3)
        assert_agrees(module, lambda m, x=x: m(x), UnitMap(rows))
    x, rows = torch.randn(5, 5, 3), torch.tensor([0, 2, 2, 1, 0])
    assert_agrees(module, lambda m: m(x), UnitMap(3, rows))


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "bias_hh_l0", "weight_hh_l1"])
def test_frozen_weights_take_no_part(frozen: str) -> None:
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 4, 2, batch_first=True), torch.randn(4, 5, 3)
    module.get_parameter(frozen).requires_grad_(False)
    assert_agrees(module, lambda m: m(x)[0], UnitMap(4))


def test_one_layer_called_twice_adds_its_uses_before_the_norm() -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(4, 4, batch_first=True), torch.randn(4, 5, 4)
    assert_agrees(module, lambda m: m(m(x)[0].flip(1))[0], UnitMap(4))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_bfloat16_autocast_draws_the_same_masks(kind: str) -> None:
    torch.manual_seed(0)
    module, x = KINDS[kind](3, 4, 2, dropout=0.5, batch_first=True), torch.randn(4, 5, 3)

    def gradient(autocast: bool) -> Tensor:
        with engine_of(module) as engine:
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = module(x)[0].float()
            engine.backward(unit_losses(out, UnitMap(4)).mean(), 4)
            return torch.cat([g.flatten() for g in engine.clipped_sum()])

    full, low = gradient(False), gradient(True)
    assert float((full - low).norm()) < 0.05 * float(full.norm())


class LastOutput(nn.LSTM):
    """A subclass with a forward pass of its own: the verified fallback repeats it for each unit."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0][:, -1]


def test_a_subclass_with_its_own_forward_agrees() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3)
    assert_agrees(LastOutput(3, 4, batch_first=True), lambda m: m(x), UnitMap(4))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.GRUCell(3, 4)])
def test_a_call_without_batch_axis_is_refused_by_name(module: nn.Module) -> None:
    with engine_of(module) as engine:
        result = module(torch.randn(4, 3) if isinstance(module, nn.LSTM) else torch.randn(3))
        loss = (result[0] if isinstance(result, tuple) else result).square().mean()
        with pytest.raises(PrivacyError, match="without a batch axis"):
            engine.backward(loss, 4)


def test_masks_that_cannot_be_drawn_again_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator whose fused function keeps a random state of its own."""
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5)), torch.randn(4, 5, 3)
    stale = RandomState.capture(torch.device("cpu"))
    torch.rand(7)
    monkeypatch.setattr(RandomState, "capture", classmethod(lambda *_: stale))
    with engine_of(module) as engine, pytest.raises(PrivacyError, match=r"0 \(LSTM\) drops units.*nn.Dropout between"):
        engine.backward(module(x)[0].square().mean(), 4)


def test_the_wrong_axis_is_caught_when_the_batch_size_changes() -> None:
    module = nn.LSTM(3, 4)  # time first, and given rows first
    with engine_of(module) as engine:
        engine.backward(module(torch.randn(4, 8, 3))[0].square().mean(), 4)
        with pytest.raises(PrivacyError, match="axis 0 is not the batch axis"):
            engine.backward(module(torch.randn(2, 8, 3))[0].square().mean(), 2)


# --- what is left behind ----------------------------------------------------------------------------------------------


def flat_weights_are_parameters(module: nn.RNNBase) -> bool:
    return all(
        w is module._parameters[n] for n, w in zip(module._flat_weights_names, module._flat_weights, strict=True)
    )


def test_the_fused_functions_own_list_holds_the_true_parameters_again() -> None:
    module, x = nn.LSTM(3, 4, 2, batch_first=True), torch.randn(4, 5, 3)
    with engine_of(module) as engine:
        loss = module(x)[0].square().mean()
        assert flat_weights_are_parameters(module)
        twin = copy.deepcopy(module)
        twin(x)[0].square().mean().backward()
        assert all(p.grad is not None for p in twin.parameters())
        engine.backward(loss, 4)
        with pytest.raises(RuntimeError, match="input.size"):
            module(torch.randn(4, 5, 7))
        assert flat_weights_are_parameters(module)
    module(x)[0].square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_replayed_masks_do_not_disturb_the_users_random_numbers() -> None:
    module, x = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.5), torch.randn(4, 5, 3)
    torch.manual_seed(0)
    module(x)
    expected = torch.rand(3)
    with engine_of(module) as engine:
        torch.manual_seed(0)
        engine.backward(unit_losses(module(x)[0], UnitMap(4)).mean(), 4)
        assert torch.equal(torch.rand(3), expected)

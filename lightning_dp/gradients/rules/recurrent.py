"""Recurrent layers and cells as they are: RNN, LSTM, GRU in every layout, and their cells.

The fused function shows no gate. The rule therefore runs the recurrence again from the recorded inputs, hands the
recorded output gradients back through it as far as the gates' pre-activations (rows do not meet on the way), and has
every weight's gradient as a sum of outer products over time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.contributions import Contribution, OuterProduct, PerUnit
from lightning_dp.gradients.replay import reproduces
from lightning_dp.gradients.rules.recurrence import Run, Weights, run_layer
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("cell_rule", "recurrent_rule")

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _count_rows(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    assert isinstance(module, nn.RNNBase)
    x = args[0] if args else kwargs["input"]
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0])
    return int(x.shape[0 if module.batch_first or x.dim() == 2 else 1])


def _drops(module: nn.Module) -> bool:
    assert isinstance(module, nn.RNNBase)
    return module.training and module.dropout > 0 and module.num_layers > 1


def _is_plain(module: nn.Module) -> bool:
    """No weight is computed from others, as weight normalisation and weight dropping do."""
    assert isinstance(module, nn.RNNBase)
    return all(name in module._parameters for name in module._flat_weights_names)


@register_rule(nn.RNN, nn.LSTM, nn.GRU, rows=_count_rows, random=_drops, applies=_is_plain)
def recurrent_rule(call: LayerCall) -> dict[str, Contribution]:
    """Runs the layers again; with dropout between them, draws the same masks and makes sure that it did."""
    module, x = call.module, call.arguments()["input"]
    assert isinstance(module, nn.RNNBase)
    if isinstance(x, Tensor) and x.dim() != 3:
        raise PrivacyError(_no_batch(call.name))
    layout = _layout(module, x, call.dtype)
    padded, active = layout(x), None
    if isinstance(x, PackedSequence):
        _, lengths = pad_packed_sequence(x)
        steps = torch.arange(padded.shape[0], device=padded.device)
        active = (steps.unsqueeze(1) < lengths.to(padded.device)).unsqueeze(2)
    with torch.enable_grad():
        if call.random_state is None:
            runs, outputs = _run_all(call, padded, active, lambda t: t)
        else:
            drawn = x.data.shape[0] if isinstance(x, PackedSequence) else None
            with call.random_state.replayed():
                runs, outputs = _run_all(call, padded, active, _dropout(module, layout, drawn))
        grads = _grads(call, layout)
        if call.random_state is not None:
            _verify(call, [outputs[0] if active is None else outputs[0] * active, *outputs[1:]], layout)
        found = _gradients(list(runs.values()), outputs, grads)
    contributions: dict[str, Contribution] = {}
    for (suffix, run), (gates, shift) in zip(runs.items(), found, strict=True):
        contributions.update(_contributions(call, suffix, run, gates, shift))
    return contributions


@register_rule(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
def cell_rule(call: LayerCall) -> dict[str, Contribution]:
    """One step of one layer; the calls of a loop over time are added up by the engine."""
    module, arguments = call.module, call.arguments()
    assert isinstance(module, nn.RNNCellBase)
    x = arguments["input"].to(call.dtype)
    if x.dim() != 2:
        raise PrivacyError(_no_batch(call.name))
    if isinstance(module, nn.RNNCell):
        mode = "RNN_RELU" if module.nonlinearity == "relu" else "RNN_TANH"
    else:
        mode = "LSTM" if isinstance(module, nn.LSTMCell) else "GRU"
    state = _states(arguments["hx"], mode, call.dtype)
    if state is None:
        state = [x.new_zeros(x.shape[0], module.hidden_size)] * (2 if mode == "LSTM" else 1)
    with torch.enable_grad():
        run = run_layer(mode, x.unsqueeze(0), state, _weights(module, "", call.dtype))
        grads = [None if g is None else g.to(call.dtype) for g in call.grads]
        ((gates, shift),) = _gradients([run], run.last, grads)
    return _contributions(call, "", run, gates, shift)


def _run_all(
    call: LayerCall, x: Tensor, active: Tensor | None, between: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Run], list[Tensor]]:
    """Every layer and direction by the suffix of its parameters' names; and what the module returns, time first."""
    module = call.module
    assert isinstance(module, nn.RNNBase)
    given = _states(call.arguments()["hx"], module.mode, call.dtype)
    directions = ("", "_reverse") if module.bidirectional else ("",)
    runs: dict[str, Run] = {}
    for layer in range(module.num_layers):
        sides: list[Run] = []
        for direction in directions:
            suffix, number = f"_l{layer}{direction}", len(runs)
            w = _weights(module, suffix, call.dtype)
            if given is None:
                sizes = (module.proj_size or module.hidden_size, module.hidden_size)
                state = [x.new_zeros(x.shape[1], size) for size in (sizes if module.mode == "LSTM" else sizes[1:])]
            else:
                state = [s[number] for s in given]
            runs[suffix] = run_layer(module.mode, x, state, w, active, reverse=direction != "")
            sides.append(runs[suffix])
        x = torch.cat([run.output for run in sides], -1)
        if layer + 1 < module.num_layers:
            x = between(x)
    last = [torch.stack(states) for states in zip(*(run.last for run in runs.values()), strict=True)]
    return runs, [x, *last]


def _verify(call: LayerCall, outputs: Sequence[Tensor], layout: Callable[[Any], Tensor]) -> None:
    recorded = [layout(call.outputs[0]), *(t.to(call.dtype) for t in call.outputs[1:])]
    pairs = ((a.transpose(0, 1), b.transpose(0, 1)) for a, b in zip(outputs, recorded, strict=True))
    low = call.random_state is not None and call.random_state.autocast
    if not all(reproduces(a, b, low) for a, b in pairs):
        raise PrivacyError(
            f"{call.name} drops units between its layers inside one fused function, and its masks could not be drawn "
            "again here. Use several one-layer modules with nn.Dropout between them, or dropout=0."
        )


def _gradients(
    runs: Sequence[Run], outputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[tuple[Tensor, Tensor | None]]:
    """For each run the gradients of its gates and of its projection's output."""
    wanted = [t for run in runs for t in (run.gates, run.shift) if t is not None]
    used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
    found = torch.autograd.grad(
        [out for out, _ in used], wanted, [grad for _, grad in used], allow_unused=True, materialize_grads=True
    )
    by_tensor = dict(zip(map(id, wanted), found, strict=True))
    return [(by_tensor[id(run.gates)], None if run.shift is None else by_tensor[id(run.shift)]) for run in runs]


def _contributions(
    call: LayerCall, suffix: str, run: Run, gates: Tensor, shift: Tensor | None
) -> dict[str, Contribution]:
    shapes = {name: p.shape for name, p in call.module.named_parameters(recurse=False)}
    rows = call.rows_of_sequence
    hidden = run.hidden_gradient(gates)
    pairs = {"weight_ih": (run.x, gates), "weight_hh": (run.before, hidden), "weight_hr": (run.cell, shift)}
    found: dict[str, Contribution] = {}
    for kind, (a, b) in pairs.items():
        name = kind + suffix
        if name in call.trainable and a is not None and b is not None:
            found[name] = OuterProduct(rows(a).unsqueeze(1), rows(b).unsqueeze(1), shapes[name])
    for kind, b in (("bias_ih", gates), ("bias_hh", hidden)):
        if kind + suffix in call.trainable:
            found[kind + suffix] = PerUnit(rows(b).sum(1))
    return found


def _weights(module: nn.Module, suffix: str, dtype: torch.dtype) -> Weights:
    tensors = [getattr(module, name + suffix, None) for name in NAMES]
    ih, hh, bias_ih, bias_hh, hr = (None if t is None else t.detach().to(dtype) for t in tensors)
    assert ih is not None
    assert hh is not None
    return Weights(ih, hh, bias_ih, bias_hh, hr)


def _states(given: Any, mode: str, dtype: torch.dtype) -> list[Tensor] | None:
    if given is None:
        return None
    return [t.to(dtype) for t in (given if mode == "LSTM" else (given,))]


def _layout(module: nn.RNNBase, x: Tensor | PackedSequence, dtype: torch.dtype) -> Callable[[Any], Tensor]:
    """Brings what goes in or comes out to ``(T, B, d)``, in the order in which the rows were given."""

    def layout(value: Any) -> Tensor:
        if isinstance(x, PackedSequence):
            data = value.data if isinstance(value, PackedSequence) else value
            packed = PackedSequence(data.to(dtype), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
            return pad_packed_sequence(packed)[0]
        tensor: Tensor = value.to(dtype)
        return tensor.transpose(0, 1) if module.batch_first else tensor

    return layout


def _dropout(module: nn.RNNBase, layout: Callable[[Any], Tensor], packed: int | None) -> Callable[[Tensor], Tensor]:
    """Dropout between two layers, drawn as the fused function draws it: over packed data, or time first."""

    def drop(x: Tensor) -> Tensor:
        if packed is None:
            return F.dropout(x, module.dropout)
        return x * layout(F.dropout(x.new_ones(packed, x.shape[-1]), module.dropout))

    return drop


def _grads(call: LayerCall, layout: Callable[[Any], Tensor]) -> list[Tensor | None]:
    first, *last = call.grads
    return [None if first is None else layout(first), *(None if g is None else g.to(call.dtype) for g in last)]


def _no_batch(name: str) -> str:
    return (
        f"{name} was called without a batch axis, so its rows cannot be assigned to units. Add one: (1, T, d) instead of "
        "(T, d) with batch_first=True."
    )

"""One recurrent layer in one direction, run again step by step, so that its gates' gradients can be asked for.

The equations are those of ``torch.nn.RNN``, ``LSTM`` (with or without projection) and ``GRU``. Given the gradients of
the gates' pre-activations, every weight's gradient is a sum of outer products over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("Run", "Weights", "run_layer")


@dataclass(frozen=True)
class Weights:
    """What one layer owns in one direction, detached; gates are stacked as in ``torch.nn``."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """One layer in one direction over T steps and B rows.

    Attributes:
        x: its inputs ``(T, B, d)``, detached.
        output: hidden states ``(T, B, h)``.
        last: the final hidden (and cell) state, ``(B, h)``.
        gates: the input's share of the gates' pre-activations ``(T, B, G)``; their gradient is wanted.
        before: the hidden state that each step started from ``(T, B, h)``, detached.
        reset: for a GRU, the reset gate ``(T, B, H)``, detached.
        shift: for a projection, zeros added to its output ``(T, B, h)``; their gradient is wanted.
        cell: for a projection, its input ``(T, B, H)``, detached.
    """

    x: Tensor
    output: Tensor
    last: tuple[Tensor, ...]
    gates: Tensor
    before: Tensor
    reset: Tensor | None = None
    shift: Tensor | None = None
    cell: Tensor | None = None

    def hidden_gradient(self, gates: Tensor) -> Tensor:
        """The gradient of the hidden state's share of the gates, from that of the input's share.

        The shares are added, so that they have one gradient; only the GRU's reset gate stands between.
        """
        if self.reset is None:
            return gates
        size = self.reset.shape[-1]
        return torch.cat([gates[..., : 2 * size], gates[..., 2 * size :] * self.reset], -1)


def run_layer(
    mode: str, x: Tensor, state: Sequence[Tensor], w: Weights, active: Tensor | None = None, reverse: bool = False
) -> Run:
    """Runs one layer in one direction.

    Args:
        mode: ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU``.
        x: inputs ``(T, B, d)``.
        state: initial hidden (and cell) state ``(B, h)``.
        w: the weights.
        active: boolean ``(T, B, 1)``, false behind a sequence's end: there the state stays as it is.
        reverse: from the last step to the first.
    """
    bias = w.bias_ih
    if bias is not None and w.bias_hh is not None and mode != "GRU":
        bias = bias + w.bias_hh
    gates = F.linear(x, w.ih, bias)
    if not gates.requires_grad:
        gates.requires_grad_()
    steps = x.shape[0]
    shift = None
    if w.hr is not None:
        shift = x.new_zeros(steps, x.shape[1], w.hr.shape[0]).requires_grad_()
    now = tuple(state)
    output, before, kept = [x] * steps, [x] * steps, [x] * steps
    share, shifts = gates.unbind(0), None if shift is None else shift.unbind(0)
    for t in reversed(range(steps)) if reverse else range(steps):
        before[t] = now[0].detach()
        new, note = _step(mode, share[t], now, w)
        if shifts is not None and w.hr is not None:
            new = (F.linear(new[0], w.hr) + shifts[t], *new[1:])
        if active is not None:
            new = tuple(torch.where(active[t], a, b) for a, b in zip(new, now, strict=True))
        kept[t] = note.detach()
        now, output[t] = new, new[0]
    notes = torch.stack(kept) if mode == "GRU" or w.hr is not None else None
    return Run(
        x.detach(),
        torch.stack(output),
        now,
        gates,
        torch.stack(before),
        reset=notes if mode == "GRU" else None,
        shift=shift,
        cell=notes if w.hr is not None else None,
    )


def _step(mode: str, share: Tensor, state: tuple[Tensor, ...], w: Weights) -> tuple[tuple[Tensor, ...], Tensor]:
    """The next state, and what the weights' gradients need beside it: the reset gate, or the unprojected output."""
    hidden = state[0]
    if mode == "GRU":
        reset, update, new = share.chunk(3, -1)
        reset_h, update_h, new_h = F.linear(hidden, w.hh, w.bias_hh).chunk(3, -1)
        reset = torch.sigmoid(reset + reset_h)
        update = torch.sigmoid(update + update_h)
        new = torch.tanh(new + reset * new_h)
        return (new + update * (hidden - new),), reset
    gates = share + F.linear(hidden, w.hh)
    if mode == "LSTM":
        enter, forget, content, leave = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(content)
        out = torch.sigmoid(leave) * torch.tanh(cell)
        return (out, cell), out
    out = torch.relu(gates) if mode == "RNN_RELU" else torch.tanh(gates)
    return (out,), out

"""The identity that a tapped call's output passes through: forward it keeps a record, backward it completes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import MixedCall, map_leaves, map_tensors, tensors_in
from lightning_dp.gradients.replay import RandomState
from lightning_dp.gradients.rules import LayerRule, RowCounter

__all__ = ("Kept", "Record", "Receiver", "Tap", "is_plain")


@dataclass
class Record:
    """One tapped call and the gradient that came back to it.

    Attributes:
        name: the module's path (and the function, for a bare parameter): for messages.
        module: the module called, or the owner of the bare parameters.
        trainable: the parameters that took part: by their names in the module, or, for a bare parameter's call, by
            their names in the network.
        inputs: recorded ``(args, kwargs)``.
        outputs: the output tensors.
        grads: their gradients, ``None`` where none arrived.
        rule: the layer's rule, or ``None`` where the generic one must do.
        mixed: the call of a bare parameter, or ``None`` for a module call.
        rows: counts the batch rows of a call that does not keep them on axis 0 of its outputs.
        random_state: the generators' state before the call, where its rule must draw the same numbers again.
        call: which of the calls with this name in the forward pass it was, from 0.
        kept: where :class:`Kept` leaves the output for a rule that has a use for it, or ``None``.
    """

    name: str
    module: nn.Module
    trainable: dict[str, nn.Parameter]
    inputs: Any
    outputs: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]
    rule: LayerRule | None = None
    mixed: MixedCall | None = None
    rows: RowCounter | None = None
    random_state: RandomState | None = None
    call: int = 0
    kept: list[Tensor] | None = None

    def batch_first(self) -> Record:
        """The record of a call on ``(T, B, ...)`` tensors, as if it had been made on ``(B, T, ...)``."""

        def swap(t: Tensor) -> Tensor:
            return t.transpose(0, 1) if t.dim() > 1 else t

        grads = tuple(None if g is None else swap(g) for g in self.grads)
        inputs, outputs = map_tensors(self.inputs, swap), tuple(map(swap, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs, grads=grads)


class Receiver(Protocol):
    """What a tap needs of the taps that it belongs to."""

    receive: Callable[[Record], None] | None
    generation: int
    sequence_first: frozenset[nn.Module]

    @property
    def is_paused(self) -> bool:
        """Whether modules run as if untapped."""
        ...


class _Saved:
    """Stands where a tensor was in a recorded call, while autograd keeps the tensor."""


_SAVED = _Saved()
_PLAIN: Any = ((_SAVED,), {})
"""The inputs of a call with one tensor and nothing else."""


def is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call has one tensor and nothing else, as most have."""
    return len(args) == 1 and type(args[0]) is Tensor and not kwargs


class Tap(torch.autograd.Function):
    """Identity forward; the backward completes the record by the gradients that arrived and hands it on."""

    @staticmethod
    def forward(ctx: Any, taps: Receiver, record: Record, anchor: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs as they are; what was recorded of the call is kept as autograd keeps it."""
        ctx.set_materialize_grads(False)
        ctx.taps, ctx.record, ctx.generation, ctx.used = taps, record, taps.generation, False
        if record.rule is None or record.random_state is not None:
            # A rule that repeats the call compares with the output: a copy, since the network may change it in place.
            record.outputs = tuple(t.detach().clone() for t in outputs)
        # Saved as autograd saves: freed with the graph, recomputed under activation checkpointing, and guarded by the
        # version counter, which a detached tensor shares with the original. With detached weights nothing else would
        # notice an input that is changed in place after use (x += f(x)).
        if record.mixed is None and not record.outputs and is_plain(*record.inputs):
            ctx.save_for_backward(record.inputs[0][0])
            record.inputs = _PLAIN
        else:
            ctx.save_for_backward(*tensors_in((record.inputs, record.outputs)))
            record.inputs = map_tensors(record.inputs, lambda _: _SAVED)
            record.outputs = map_tensors(record.outputs, lambda _: _SAVED)
        if record.mixed is not None:
            record.mixed = MixedCall(record.mixed.func, (), {})
        return tuple(t.detach() for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients as they are; the record is completed by them and handed on."""
        taps, record = ctx.taps, ctx.record
        if torch.is_grad_enabled() and not taps.is_paused:
            # Also outside the recorded pass (torch.autograd.grad in the loss): the weights are detached, so the second
            # derivative would lack its terms.
            raise PrivacyError(
                f"{record.name}: a backward pass with create_graph=True cannot be privatised; the second "
                "derivative mixes the units. Gradient penalties are not supported."
            )
        if taps.receive is not None:
            if ctx.used or ctx.generation != taps.generation:
                raise PrivacyError(
                    f"the loss reaches back to an earlier pass through {record.name}: those rows belong to another "
                    "draw of units, and would be clipped as if they were this one's. Detach what is carried from step "
                    "to step (hidden states, memories), and compute the loss afresh in every step."
                )
            ctx.used = True
            record = _completed(record, grads, _saved_tensors(ctx))
            if record.kept:
                record = replace(record, outputs=(record.kept.pop(),))
            taps.receive(record.batch_first() if record.module in taps.sequence_first else record)
        return (None, None, None, *grads)


class Kept(torch.autograd.Function):
    """Identity after a tap; the backward hands the output to the tap's record, unless the network has changed it in place.

    A function of its own: what a tap itself saves must be unchanged.
    """

    @staticmethod
    def forward(ctx: Any, kept: list[Tensor], output: Tensor) -> Tensor:
        """The output as it is, saved as autograd saves."""
        ctx.kept = kept
        result = output.detach()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """The gradient as it is."""
        with suppress(RuntimeError):  # changed in place since: the rule does without
            ctx.kept.extend(ctx.saved_tensors)
        return None, grad


def _saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise PrivacyError(
            f"the input of {ctx.record.name} was changed in place after the layer had used it, so its "
            "gradient per unit would be wrong. Replace the in-place operation on that tensor "
            "(x += ..., an inplace=True activation) by its ordinary form."
        ) from error


def _completed(record: Record, grads: tuple[Tensor | None, ...], saved: Sequence[Tensor]) -> Record:
    if record.inputs is _PLAIN:
        completed = copy.copy(record)
        completed.inputs, completed.grads = ((saved[0],), {}), grads
        return completed
    tensors = iter(saved)
    inputs, outputs = map_leaves(
        (record.inputs, record.outputs), lambda leaf: next(tensors) if leaf is _SAVED else leaf
    )
    mixed = None if record.mixed is None else MixedCall(record.mixed.func, *inputs)
    return replace(record, inputs=inputs, outputs=outputs, grads=grads, mixed=mixed)

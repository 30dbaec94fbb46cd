"""The second forward pass: every unit's rows meet that unit's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.ascent.attention import attend
from lightning_dp.gradients.ascent.directions import Directions
from lightning_dp.gradients.ascent.layers import LINEAR_LAYERS, Moved
from lightning_dp.gradients.ascent.vectorised import by_units, recurrence_by_units
from lightning_dp.gradients.bare import MixedCall, tensors_in
from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.generic import attributes_kept, repeated_call, repeated_module
from lightning_dp.gradients.replay import RandomState, reproduces
from lightning_dp.gradients.row_memory import RowMemory
from lightning_dp.gradients.rules import LayerRule, RowCounter
from lightning_dp.gradients.units import UnitMap

__all__ = ("Shift", "ShiftedCall")

Arithmetic = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class ShiftedCall:
    """A tapped call in the second pass, with its graph.

    Attributes:
        name: the layer's path, for messages.
        number: which of the calls with this name it is.
        module: the layer, its own parameters in place.
        inputs: ``(args, kwargs)``.
        outputs: its floating-point outputs with its own parameters.
        trainable: the parameters that take part, by their names in the module.
        rule: the layer's rule, or ``None``.
        rows: counts the batch rows where they are not on axis 0 of the outputs.
        random_state: the generators' state before the call, where it draws random numbers.
        sequence_first: whether the tensors are ``(T, R, ...)``.
    """

    name: str
    number: int
    module: nn.Module
    inputs: Any
    outputs: Sequence[Tensor]
    trainable: Mapping[str, nn.Parameter]
    rule: LayerRule | None
    rows: RowCounter | None
    random_state: RandomState | None
    sequence_first: bool


class Shift:
    """Moves the outputs of layers to what they are at the units' own parameters.

    Layers that are linear in their parameters keep their output and get the displacement's part added; their rules then
    hold as they are. All others are run again, vectorised over units, with leaf tensors ``(U, *shape)`` in place of their
    parameters: unit u's loss touches slice u alone, so what autograd leaves there are the units' gradients.

    Args:
        directions: how far each unit's parameters are moved.
        units: the units of the batch.
        row_memory: which kind of rows each layer sees.
        arithmetic: a context in which float32 means float32.
        paused: a context in which modules run untapped.
    """

    def __init__(
        self,
        directions: Directions,
        units: UnitMap,
        row_memory: RowMemory,
        arithmetic: Arithmetic,
        paused: Callable[[], Any],
    ) -> None:
        self.directions, self.units, self.row_memory = directions, units, row_memory
        self._arithmetic, self._paused = arithmetic, paused
        self._leaves: list[tuple[nn.Parameter, Tensor]] = []
        self._over = False

    def end(self) -> dict[nn.Parameter, list[Contribution]]:
        """The units' gradients of the layers that were run again, once the backward pass is over."""
        self._over = True
        found: dict[nn.Parameter, list[Contribution]] = {}
        for parameter, leaf in self._leaves:
            if leaf.grad is not None:
                found.setdefault(parameter, []).append(PerUnit(leaf.grad))
        self._leaves.clear()
        return found

    def of_layer(self, call: ShiftedCall) -> tuple[Sequence[Tensor], bool]:
        """The outputs at the units' parameters, and whether the call is still to be recorded for its rule."""
        outputs = [_swapped(t) for t in call.outputs] if call.sequence_first else list(call.outputs)
        if outputs[0].dim() == 0:  # refused by the generic rule
            return call.outputs, True
        _refuse_complex(call.name, outputs, call.trainable.values())
        args, kwargs = call.inputs
        rows = outputs[0].shape[0] if call.rows is None else call.rows(call.module, args, kwargs)
        if rows == 0:
            return call.outputs, True
        units = self.row_memory.resolve(call.name, call.number, rows, self.units)
        change = None if call.rule is None else LINEAR_LAYERS.get(call.rule)
        with self._arithmetic():
            if change is not None:
                dtype = next(iter(call.trainable.values())).dtype
                x = next(tensors_in(call.inputs))
                x = _swapped(x) if call.sequence_first else x
                x = units.by_unit(x.to(dtype) if x.is_floating_point() else x, call.name)
                moved = change(Moved(call.module, x, dict(call.trainable), self.directions))
                if moved is None:
                    return call.outputs, True
                moved = moved.expand(*x.shape[:2], *outputs[0].shape[1:])
                output = outputs[0] + units.by_row(moved, rows, call.name).to(outputs[0].dtype)
                return [_swapped(output) if call.sequence_first else output], True
            results = self._again(call, outputs, units)
        return [_swapped(t) for t in results] if call.sequence_first else results, False

    def of_function(
        self, name: str, number: int, call: MixedCall, result: Tensor, parameters: Mapping[str, nn.Parameter]
    ) -> Tensor:
        """The result of a function that mixes bare parameters with the batch, at the units' parameters."""
        if result.dim() == 0 or result.shape[0] == 0:
            return result
        _refuse_complex(name, [result], parameters.values())
        units = self._regular(name, self.row_memory.resolve(name, number, result.shape[0], self.units))
        rows = result.shape[0]
        repeat = repeated_call(call, rows, units.by_unit(result.detach(), name).shape[1])
        with self._arithmetic(), self._paused():
            carried = self.row_memory.with_rows(name, number, tensors_in((call.args, call.kwargs)), rows)
            (moved,) = by_units(
                repeat, self._values(parameters), (call.args, dict(call.kwargs)), (result,), carried, units, name
            )
        return moved

    def _again(self, call: ShiftedCall, outputs: Sequence[Tensor], units: UnitMap) -> list[Tensor]:
        units, module = self._regular(call.name, units), call.module
        values, inputs = self._values(call.trainable), call.inputs
        if call.sequence_first:
            raise PrivacyError(_not_covered(call.name, "it is called with the batch on axis 1"))
        with self._paused(), attributes_kept(module):
            if isinstance(module, nn.MultiheadAttention):
                return attend(module, values, inputs, outputs, units, call.random_state, call.name)
            if call.random_state is not None:
                raise PrivacyError(
                    _not_covered(
                        call.name, "it draws random numbers inside (use dropout=0 and an nn.Dropout between layers)"
                    )
                )
            if isinstance(module, nn.RNNBase):
                return recurrence_by_units(module, values, inputs, outputs, units, call.name)
            repeat = repeated_module(module)
            carried = self.row_memory.with_rows(call.name, call.number, tensors_in(inputs), outputs[0].shape[0])
            if call.rule is not None:
                # Its own rule may know an axis that this reading of the inputs does not: see that it comes out the same.
                own = {name: p.detach().expand(units.num_units, *p.shape) for name, p in call.trainable.items()}
                with torch.no_grad():
                    again = by_units(repeat, own, inputs, outputs, carried, units, call.name)
                pairs = zip(again, outputs, strict=True)
                if not all(_same(a, b.detach(), units, call.name) for a, b in pairs):
                    raise PrivacyError(_not_covered(call.name, "one unit alone does not reproduce its output"))
            return by_units(repeat, values, inputs, outputs, carried, units, call.name)

    def _values(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Leaf tensors ``(U, *shape)`` with each unit's own values."""
        values = {}
        for name, parameter in parameters.items():
            own, moved = parameter.detach(), self.directions.full(parameter)
            leaf = own.expand(self.units.num_units, *own.shape)
            leaf = leaf.clone() if moved is None else leaf + moved.to(own.dtype)
            values[name] = leaf.requires_grad_()
            leaf.register_hook(self._arrived)  # type: ignore[no-untyped-call]
            self._leaves.append((parameter, leaf))
        return values

    def _arrived(self, grad: Tensor) -> None:
        if self._over:
            raise PrivacyError(
                "the loss reaches back to an earlier pass, whose rows belong to another draw of units. Detach what is carried "
                "from step to step (hidden states, memories), and compute the loss afresh in every step."
            )

    def _regular(self, name: str, units: UnitMap) -> UnitMap:
        if self.units.kinds:
            raise PrivacyError(_not_covered(name, "the batch has several kinds of rows (nodes, edges)"))
        return units


def _refuse_complex(name: str, outputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    if any(t.is_complex() for t in (*outputs, *parameters)):
        raise PrivacyError(_not_covered(name, "it works with complex numbers"))


def _swapped(t: Tensor) -> Tensor:
    return t.transpose(0, 1) if t.dim() > 1 else t


def _same(result: Tensor, recorded: Tensor, units: UnitMap, name: str) -> bool:
    if recorded.dim() == 0 or result.shape != recorded.shape:
        return result.shape == recorded.shape
    return reproduces(units.by_unit(result, name, repeat=True), units.by_unit(recorded, name, repeat=True))


def _not_covered(name: str, why: str) -> str:
    return (
        f"{name} cannot be run with parameters of each unit's own, which bias-aware minimisation needs: {why}. Replace or "
        "freeze it, or use DPStrategy, or BAMStrategy(direction='previous'), whose ascent all units share."
    )

"""One backward pass: layers' norms as their gradients arrive, then one clipped sum over the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import tensors_in
from lightning_dp.gradients.contributions import Contribution, joint_squared_norms
from lightning_dp.gradients.generic import generic_rule, mixed_call_rule
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.reals import real_shape
from lightning_dp.gradients.rules import LayerCall
from lightning_dp.gradients.taps import Record, Taps
from lightning_dp.gradients.units import MAIN, UnitMap
from lightning_dp.gradients.whole_batch import whole_batch_rule

__all__ = ("BackwardPass",)

Arithmetic = Callable[[], AbstractContextManager[None]]


class BackwardPass:
    """Collects what each layer's parameters contribute, and the units' norms.

    A layer's norms are computed while its gradient is still in cache, and what they do not need is dropped at once. Where
    a parameter is used several times, the uses are added before the norm, so they wait for the end of the pass.

    Args:
        taps: where the records come from.
        units: which rows belong to which unit.
        dtype: norms and sums are kept in it.
        memory: what may be held.
        arithmetic: a context in which float32 means float32.
    """

    def __init__(
        self,
        taps: Taps,
        units: UnitMap,
        dtype: torch.dtype,
        memory: Memory,
        arithmetic: Arithmetic,
    ) -> None:
        self.taps, self.units, self.dtype, self.memory = taps, units, dtype, memory
        self._arithmetic = arithmetic
        self.norms_wanted = True
        """Switched off where only the contributions are wanted, to be mixed with others before any norm."""
        self._uses: dict[nn.Parameter, list[Contribution]] = {}
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._later: list[tuple[Record, UnitMap]] = []
        self.empty = True

    def receive(self, record: Record) -> None:
        """Takes the record of one layer, complete with its output gradient."""
        self.empty = False
        units = self._units_of(record)
        if units is None:
            return
        if record.rule is None:  # differentiates the call again, which does not belong inside autograd's own pass
            self._later.append((record, units))
            return
        with self._arithmetic(), self.taps.paused():  # a rule may call the layer
            args, kwargs = record.inputs
            trainable = frozenset(record.trainable)
            call = LayerCall(
                record.module, record.name, args, kwargs, record.grads, units, trainable, self.dtype,
                record.outputs, record.random_state,
            )  # fmt: skip
            self._add(record, record.rule(call))

    def refuse_empty(self) -> None:
        """Raises PrivacyError if the pass reached no trainable layer."""
        if self.empty:
            raise PrivacyError(
                "the backward pass reached no trainable layer, so the loss does not depend on the network's "
                "parameters. Return the loss of the batch from training_step, computed with gradients enabled."
            )

    def contributions(self) -> Mapping[nn.Parameter, Sequence[Contribution]]:
        """What every use of every parameter contributed."""
        with self._arithmetic():
            for record, units in self._later:
                self._add(record, self._generic(record, units))
            self._later.clear()
        return self._uses

    def finish(self) -> tuple[Mapping[nn.Parameter, Tensor], Mapping[nn.Parameter, Sequence[Contribution]]]:
        """The squared norms ``(U,)`` of each parameter's units, and the contributions to sum."""
        self.contributions()
        with self._arithmetic():
            kept: dict[nn.Parameter, Sequence[Contribution]] = {}
            for parameter, uses in self._uses.items():
                kept[parameter] = uses
                if len(uses) > 1:
                    self._norms[parameter], kept[parameter] = joint_squared_norms(uses)
                elif parameter not in self._norms:
                    self._norms[parameter] = self._norm_of(uses[0])
            self._repair()
        return self._norms, kept

    def _add(self, record: Record, contributions: Mapping[str, Contribution]) -> None:
        for name, contribution in contributions.items():
            parameter = record.trainable[name]
            contribution = contribution.real()
            if contribution.shape != real_shape(parameter):
                raise PrivacyError(
                    f"{record.name}: the rule for its parameter {name} gives gradients of shape "
                    f"{tuple(contribution.shape)} for {tuple(real_shape(parameter))} real coordinates, so that its norm "
                    "would be another parameter's. A rule for complex numbers returns complex gradients for complex "
                    "parameters and real ones for real parameters."
                )
            uses = self._uses.setdefault(parameter, [])
            uses.append(contribution)
            if self.norms_wanted and self.taps.uses[parameter] == 1 and len(uses) == 1:
                self._norms[parameter] = self._norm_of(contribution)

    def _norm_of(self, contribution: Contribution) -> Tensor:
        contribution.choose_route(self.memory)
        return contribution.squared_norms()

    def _repair(self) -> None:
        """Norms that lost digits to cancellation, again without; asked once for all layers, as it stalls a GPU."""
        doubtful = {
            parameter: uses[0]
            for parameter, uses in self._uses.items()
            if len(uses) == 1 and uses[0].doubtful is not None
        }
        if not doubtful:
            return
        flags = torch.stack([c.doubtful.any() for c in doubtful.values() if c.doubtful is not None]).tolist()
        for flag, (parameter, contribution) in zip(flags, doubtful.items(), strict=True):
            if flag:
                self._norms[parameter] = contribution.repaired(self._norms[parameter])

    def _generic(self, record: Record, units: UnitMap) -> Mapping[str, Contribution]:
        parameters = {name: p.detach() for name, p in record.trainable.items()}
        if record.mixed is not None:
            present = next(g for g in record.grads if g is not None)
            with self.taps.paused():
                carried = self._with_rows(record, (record.mixed.args, record.mixed.kwargs))
                return mixed_call_rule(
                    record.mixed, parameters, record.outputs[0], present, carried, units, record.name
                )
        inputs, outputs, grads = record.inputs, record.outputs, record.grads
        with self.taps.paused(), torch.enable_grad():
            if self.units.kinds:
                return whole_batch_rule(record.module, parameters, inputs, outputs, grads, units, record.name)
            carried = self._with_rows(record, inputs)
            return generic_rule(record.module, parameters, inputs, outputs, grads, carried, units, record.name)

    def _with_rows(self, record: Record, inputs: Any) -> list[Tensor]:
        rows = record.outputs[0].shape[0] if record.outputs[0].dim() else 0
        return self.taps.row_memory.with_rows(record.name, record.call, tensors_in(inputs), rows)

    def _units_of(self, record: Record) -> UnitMap | None:
        """The map of the one kind of rows that a layer saw, or ``None`` if it saw no rows."""
        grad = next(g for g in record.grads if g is not None)
        if grad.dim() == 0:  # the generic rule refuses it
            return self.units.of_kind(MAIN)
        args, kwargs = record.inputs
        rows = grad.shape[0] if record.rows is None else record.rows(record.module, args, kwargs)
        if rows == 0:  # a layer on edges, in a batch of graphs without any
            return None
        return self.taps.row_memory.resolve(record.name, record.call, rows, self.units)

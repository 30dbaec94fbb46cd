"""The rule for modules without one of their own where units differ in their number of rows: graphs, patients.

Nothing is padded and no input is split. The call is repeated on the whole batch, and its output gradient is pulled back
through it once for each unit, with the rows of all other units set to zero. What arrives at the parameters is that unit's
gradient whatever the module does inside: sums over a node's neighbours, means over the nodes of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import map_tensors, tensors_in
from lightning_dp.gradients.contributions import Contribution, PerUnit, unit_chunks
from lightning_dp.gradients.reals import carries_gradient, in_precision, real_dtype
from lightning_dp.gradients.units import UnitMap

__all__ = ("whole_batch_rule",)

TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 5e-2  # of the largest output
APART = 1e-5  # what rounding may carry from one unit to another, as a share of the largest gradient


def whole_batch_rule(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Any,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    units: UnitMap,
    name: str,
) -> dict[str, Contribution]:
    """Per-unit gradients by one pull-back for each unit.

    Args:
        module: the module that was called.
        parameters: the module's trainable parameters by their names in the module, detached.
        inputs: the recorded ``(args, kwargs)``.
        outputs: the recorded output tensors ``(R, ...)``.
        grads: their gradients, ``None`` where none arrived.
        units: which of the R rows belong to which unit.
        name: the module's path, for messages.

    Raises:
        PrivacyError: if the call cannot be repeated, or a unit's output depends on another unit's rows.
    """
    used = [i for i, grad in enumerate(grads) if grad is not None]
    if any(outputs[i].dim() == 0 for i in used):
        raise PrivacyError(
            f"{name} returns a single number for the whole batch, so no gradient per privacy unit exists. Let it "
            "return one value for each sample and take the mean outside, or freeze its parameters."
        )
    owner = units.owners(outputs[used[0]].shape[0], name).to(outputs[used[0]].device)
    call = _Call(module, parameters, inputs, owner, used, name)
    results, wanted = call.run()
    for result, i in zip(results, used, strict=True):
        _check_repeated(result.detach(), outputs[i], name)
    present = [g for g in grads if g is not None]
    found = []
    size = sum(t.numel() for t in (*wanted, *results))
    for start, stop in unit_chunks(units.num_units, size):
        unit = torch.arange(start, stop, device=owner.device)
        pulled = call.pull_back(results, wanted, present, unit)
        _check_apart(pulled[len(parameters) :], unit, owner, name)
        found.append(pulled[: len(parameters)])
    gradients = [torch.cat(chunks) for chunks in zip(*found, strict=True)]
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        gradients = call.one_by_one(present, units.num_units)
    return {key: PerUnit(gradient) for key, gradient in zip(parameters, gradients, strict=True)}


class _Call:
    """The recorded call, ready to be repeated and differentiated."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        inputs: Any,
        owner: Tensor,
        used: Sequence[int],
        name: str,
    ) -> None:
        self.module, self.parameters, self.inputs = module, parameters, inputs
        self.owner, self.used, self.name = owner, used, name
        # Computed in the precision of the parameters: a norm is never taken in half precision.
        self.dtype = real_dtype(next(iter(parameters.values())).dtype)

    def run(self, alone: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs, and what to differentiate by: parameters, then the inputs with the output's rows.

        With ``alone`` every row of another unit is replaced by that unit's own first row.
        """
        values = {key: value.detach().requires_grad_() for key, value in self.parameters.items()}
        carried: list[Tensor] = []

        def lift(tensor: Tensor) -> Tensor:
            if not carries_gradient(tensor):
                return tensor
            lifted = in_precision(tensor.detach(), self.dtype)
            rows = lifted.dim() > 0 and lifted.shape[0] == self.owner.numel()
            if rows and alone is not None:
                mine = self.owner == alone
                lifted = torch.where(_like(mine, lifted), lifted, lifted[mine][:1])
            lifted = lifted.clone().requires_grad_()
            if rows:
                carried.append(lifted)
            return lifted

        args, kwargs = map_tensors(self.inputs, lift)
        with torch.enable_grad():
            results = [
                t
                for t in tensors_in(torch.func.functional_call(self.module, values, args, kwargs))
                if carries_gradient(t)
            ]
        return [results[i] for i in self.used], [*values.values(), *carried]

    def pull_back(
        self, results: Sequence[Tensor], wanted: Sequence[Tensor], grads: Sequence[Tensor], unit: Tensor
    ) -> tuple[Tensor, ...]:
        """The gradients of the given units ``(U,)`` with respect to ``wanted``, stacked on a new axis 0."""
        mask = unit.unsqueeze(1) == self.owner
        cotangents = [
            torch.where(_like(mask, r, 1), g.to(r.dtype), g.new_zeros((), dtype=r.dtype))
            for r, g in zip(results, grads, strict=True)
        ]
        pulled = torch.autograd.grad(
            results,
            wanted,
            cotangents,
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        return tuple(
            w.new_zeros(len(unit), *w.shape, requires_grad=False) if g is None else g
            for g, w in zip(pulled, wanted, strict=True)
        )

    def one_by_one(self, grads: Sequence[Tensor], num_units: int) -> list[Tensor]:
        """The same where something is not finite: zero times infinity would reach every other unit of the batch."""
        found = []
        for u in range(num_units):
            if not bool((self.owner == u).any()):
                found.append([torch.zeros_like(p).unsqueeze(0) for p in self.parameters.values()])
                continue
            results, wanted = self.run(alone=u)
            unit = torch.tensor([u], device=self.owner.device)
            found.append(list(self.pull_back(results, wanted[: len(self.parameters)], grads, unit)))
        return [torch.cat(chunks) for chunks in zip(*found, strict=True)]


def _like(mask: Tensor, result: Tensor, leading: int = 0) -> Tensor:
    """A mask over rows (after ``leading`` further axes) that broadcasts against ``result``."""
    return mask.view(*mask.shape, *[1] * (result.dim() + leading - mask.dim()))


def _check_repeated(result: Tensor, recorded: Tensor, name: str) -> None:
    finite = torch.isfinite(result) & torch.isfinite(recorded)
    difference = torch.where(finite, (result - recorded).abs(), 0.0)
    scale = torch.where(finite, recorded.abs(), 0.0)
    low = recorded.dtype in (torch.bfloat16, torch.float16)
    tolerance = LOW_PRECISION_TOLERANCE if low else TOLERANCE
    if difference.numel() and bool(difference.max() > tolerance * scale.max().clamp_min(1e-30)):
        raise PrivacyError(
            f"{name} has no layer rule, and repeating its call does not reproduce its output, so it draws random numbers. "
            "Move dropout into an nn.Dropout of its own, register a rule with lightning_dp.gradients.register_rule, or "
            "freeze the module's parameters."
        )


def _check_apart(pulled: Sequence[Tensor], unit: Tensor, owner: Tensor, name: str) -> None:
    """A unit's output may not depend on the rows of another: its gradient would change with the others' data."""
    foreign = unit.unsqueeze(1) != owner
    for gradient in pulled:
        size = torch.where(torch.isfinite(gradient), gradient.abs(), 0.0)
        rows = size.flatten(2).amax(2) if size.dim() > 2 and size.numel() else size
        if rows.dim() == 2 and rows.numel() and bool((rows * foreign).max() > APART * rows.max()):
            raise PrivacyError(
                f"{name} couples the units of the batch: the output of one depends on the rows of another (a normalisation "
                "over the whole batch; in graph networks a layer called without its batch vector). Call it with the batch "
                "vector, replace it, or freeze its parameters."
            )

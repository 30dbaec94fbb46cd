"""The rule for everything without a rule of its own: differentiate the recorded call again, one unit at a time.

``torch.func`` repeats the call for every unit in one vectorised pass. The repetition is compared with the recorded
output, so that a module that draws random numbers, couples its rows or keeps rows on another axis is stopped by name
instead of yielding a wrong norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import Expression, MixedCall, map_tensors, tensors_in
from lightning_dp.gradients.contributions import CHUNK_ELEMENTS, Contribution, PerUnit
from lightning_dp.gradients.reals import carries_gradient, in_precision, real_dtype
from lightning_dp.gradients.replay import reproduces
from lightning_dp.gradients.units import UnitMap

__all__ = ("Repeat", "attributes_kept", "generic_rule", "mixed_call_rule", "repeated_call", "repeated_module")

Repeat = Callable[[Mapping[str, Tensor], Any], tuple[Tensor, ...]]
"""From parameters by name, and inputs, to the real or complex outputs."""


def generic_rule(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Any,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    carried: Sequence[Tensor],
    units: UnitMap,
    name: str,
) -> dict[str, Contribution]:
    """Per-unit gradients of any module whose rows are independent, by repeating its forward pass under ``vmap``.

    Args:
        module: the module that was called.
        parameters: the module's trainable parameters by their names in the module, detached.
        inputs: the recorded ``(args, kwargs)``.
        outputs: the recorded output tensors ``(R, ...)``.
        grads: their gradients, ``None`` where none arrived.
        carried: those tensors of the inputs that are split by unit; all others are shared.
        units: which rows belong to which unit.
        name: the module's path, for messages.

    Raises:
        PrivacyError: if repeating the call does not reproduce the recorded output.
    """
    with attributes_kept(module):
        return _per_unit(repeated_module(module), parameters, inputs, outputs, grads, carried, units, name)


def repeated_module(module: nn.Module) -> Repeat:
    """The module as a function of its parameters and of ``(args, kwargs)``, returning its real or complex outputs."""

    def repeat(values: Mapping[str, Tensor], unit_inputs: Any) -> tuple[Tensor, ...]:
        args, kwargs = unit_inputs
        result = torch.func.functional_call(module, dict(values), args, kwargs)
        return tuple(t for t in tensors_in(result) if carries_gradient(t))

    return repeat


def repeated_call(call: MixedCall, rows: int, fold: int) -> Repeat:
    """A function call as a function of the bare parameters in it, for ``fold`` of its ``rows`` rows."""

    def repeat(values: Mapping[str, Tensor], unit_inputs: Any) -> tuple[Tensor, ...]:
        args, kwargs = _evaluate(unit_inputs, values, rows, fold)
        return (call.func(*args, **kwargs),)

    return repeat


def mixed_call_rule(
    call: MixedCall,
    parameters: Mapping[str, Tensor],
    output: Tensor,
    grad: Tensor,
    carried: Sequence[Tensor],
    units: UnitMap,
    name: str,
) -> dict[str, Contribution]:
    """Per-unit gradients of bare parameters at the one function call that mixed them with the batch."""
    if output.dim() == 0:
        raise PrivacyError(
            f"{name} turns a bare parameter into a single number for the whole batch, so no gradient per privacy unit "
            "exists. Move regularisers to the optimizer (weight_decay), or keep one value per sample until the loss."
        )
    rows, fold = output.shape[0], units.by_unit(output.detach(), name).shape[1]
    needed = {source: parameters[source] for source in call.sources()}
    return _per_unit(
        repeated_call(call, rows, fold),
        needed,
        (call.args, dict(call.kwargs)),
        (output,),
        (grad,),
        carried,
        units,
        name,
    )


def _per_unit(
    repeat: Repeat,
    parameters: Mapping[str, Tensor],
    inputs: Any,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    carried: Sequence[Tensor],
    units: UnitMap,
    name: str,
) -> dict[str, Contribution]:
    used = [i for i, grad in enumerate(grads) if grad is not None]
    if any(outputs[i].dim() == 0 for i in used):
        raise PrivacyError(
            f"{name} returns a single number for the whole batch, so no gradient per privacy unit exists. Let it "
            "return one value for each sample and take the mean outside, or freeze its parameters."
        )
    try:
        gradients, results = _vectorised(repeat, parameters, inputs, carried, grads, used, units, name)
    except PrivacyError:
        raise
    except Exception as error:  # whatever the module's own code raises for one unit's rows alone
        raise PrivacyError(f"{_not_reproduced(name)} ({type(error).__name__}: {error})") from error
    # Another reading of the inputs might reproduce the output where this one does not; but one that takes an input with
    # a row for each sample as shared would also accept a layer that centres the batch.
    pairs = zip(results, (units.by_unit(outputs[i].detach(), name, repeat=True) for i in used), strict=True)
    if not all(reproduces(result, recorded) for result, recorded in pairs):
        raise PrivacyError(_not_reproduced(name))
    return {key: PerUnit(value.detach()) for key, value in gradients.items()}


def _vectorised(
    repeat: Repeat,
    parameters: Mapping[str, Tensor],
    inputs: Any,
    carried: Sequence[Tensor],
    grads: tuple[Tensor | None, ...],
    used: Sequence[int],
    units: UnitMap,
    name: str,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The units' gradients and outputs, if the tensors ``carried`` are split by unit and all others shared."""
    split = [units.by_unit(t.detach(), name, repeat=True) for t in carried]
    grouped = [units.by_unit(_tensor(grads[i]), name) for i in used]
    position = {id(t): i for i, t in enumerate(carried)}
    # Inputs are computed in the precision of the parameters: a norm is never taken in half precision.
    dtype = real_dtype(next(iter(parameters.values())).dtype)

    def unit_gradient(
        values: Mapping[str, Tensor], unit_rows: list[Tensor], unit_grads: list[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        unit_inputs = map_tensors(
            inputs, lambda t: in_precision(unit_rows[position[id(t)]] if id(t) in position else t.detach(), dtype)
        )

        def forward(v: Mapping[str, Tensor]) -> list[Tensor]:
            results = repeat(v, unit_inputs)
            return [results[i] for i in used]

        results, pull_back = torch.func.vjp(forward, dict(values))  # type: ignore[misc]
        if any(r.shape != g.shape for r, g in zip(results, unit_grads, strict=True)):
            raise ValueError("its output has another shape for one unit alone")
        (gradient,) = pull_back([g.to(r.dtype) for g, r in zip(unit_grads, results, strict=True)])
        return gradient, results

    size = sum(p.numel() for p in parameters.values()) + sum(t[0].numel() for t in split + grouped)
    vectorised = torch.func.vmap(
        unit_gradient, (None, 0, 0), randomness="different", chunk_size=max(1, CHUNK_ELEMENTS // max(1, size))
    )
    with warnings.catch_warnings():  # a missing batching rule makes a rare layer slow, not wrong
        warnings.filterwarnings("ignore", message="There is a performance drop")
        gradients, results = vectorised(dict(parameters), split, grouped)
    return gradients, [result.detach() for result in results]


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Puts back what a repeated forward pass keeps on the module: a weight computed by a hook, an attention map.

    Inside ``vmap`` these are tensors that nothing outside can use, copy or save.
    """
    before = [
        (child, dict(vars(child)), {id(v): list(v) for v in vars(child).values() if isinstance(v, list)})
        for child in module.modules()
    ]
    try:
        yield
    finally:
        for child, attributes, lists in before:
            vars(child).clear()
            vars(child).update(attributes)
            for value in attributes.values():
                if isinstance(value, list):
                    value[:] = lists[id(value)]


def _evaluate(value: Any, parameters: Mapping[str, Tensor], rows: int, fold: int) -> Any:
    if isinstance(value, Expression):
        return value.evaluate(parameters, rows, fold)
    if isinstance(value, dict):
        return {key: _evaluate(item, parameters, rows, fold) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_evaluate(item, parameters, rows, fold) for item in value])
    return value


def _not_reproduced(name: str) -> str:
    return (
        f"{name} has no layer rule, and repeating it one privacy unit at a time does not reproduce its output. It "
        "draws random numbers (dropout inside the module), couples the samples of the batch, changes its input in place, "
        "does not keep the batch on axis 0 of its inputs and outputs, or is given a tensor for the whole batch that happens "
        "to have as many rows (make it a buffer of the module). Move dropout into an nn.Dropout of its own, use "
        "batch_first layouts, register a rule with lightning_dp.gradients.register_rule, or freeze the module's "
        "parameters."
    )


def _tensor(value: Tensor | None) -> Tensor:
    assert value is not None
    return value

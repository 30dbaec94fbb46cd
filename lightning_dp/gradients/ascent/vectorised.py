"""Running a call with parameters of each unit's own: vectorised over units, or unit by unit where that does not go."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import map_tensors
from lightning_dp.gradients.generic import Repeat, repeated_module
from lightning_dp.gradients.units import UnitMap

__all__ = ("by_units", "recurrence_by_units")


def by_units(
    repeat: Repeat,
    values: Mapping[str, Tensor],
    inputs: Any,
    outputs: Sequence[Tensor],
    carried: Sequence[Tensor],
    units: UnitMap,
    name: str,
) -> list[Tensor]:
    """The call's outputs ``(R, ...)`` with parameters ``(U, *shape)``.

    Args:
        repeat: the call as a function of one unit's parameters and inputs.
        values: the parameters by name.
        inputs: the recorded inputs.
        outputs: what the call returned; one of another shape than ``repeat``'s is kept as it is.
        carried: those tensors of the inputs that are split by unit; all others are shared, as in the generic rule, which has
            seen in the first pass that this reproduces the output.
        units: which rows belong to which unit.
        name: for messages.

    Raises:
        PrivacyError: if the call cannot be run for one unit alone.
    """
    position = {id(t): i for i, t in enumerate(carried)}
    split = [units.by_unit(t, name, repeat=True) for t in carried]
    dtype = next(iter(values.values())).dtype

    def one(own: Mapping[str, Tensor], unit_rows: Sequence[Tensor]) -> list[Tensor]:
        unit_inputs = map_tensors(
            inputs, lambda t: _cast(unit_rows[position[id(t)]] if id(t) in position else t, dtype)
        )
        return list(repeat(own, unit_inputs))

    try:
        results = _over_units(one, dict(values), split)
    except PrivacyError:
        raise
    except Exception as error:  # whatever the module's own code raises for one unit's rows alone
        if type(error).__module__ == "torch.utils.checkpoint":  # how activation checkpointing ends a repetition
            raise
        raise PrivacyError(
            f"{name} cannot be run for one privacy unit alone with parameters of its own ({type(error).__name__}: {error}), "
            "which bias-aware minimisation needs. Replace or freeze it, or use DPStrategy."
        ) from error
    return [_rows_again(result, output, units, name) for result, output in zip(results, outputs, strict=True)]


def recurrence_by_units(
    module: nn.RNNBase, values: Mapping[str, Tensor], inputs: Any, outputs: Sequence[Tensor], units: UnitMap, name: str
) -> list[Tensor]:
    """The same for PyTorch's recurrent layers, whose fused function does not vectorise: one call for each unit.

    Inputs and outputs keep the batch on axis 0 or 1 as ``batch_first`` says, states on axis 1.
    """
    args, kwargs = inputs
    x = args[0] if args else kwargs["input"]
    hx = args[1] if len(args) > 1 else kwargs.get("hx")
    if isinstance(x, PackedSequence):
        raise PrivacyError(
            f"{name} is called with a packed sequence, which cannot be split by units for bias-aware minimisation. Pad the "
            "sequences instead."
        )

    def moved(t: Tensor, is_state: bool) -> Tensor:
        return t if module.batch_first and not is_state else t.transpose(0, 1)

    dtype = next(iter(values.values())).dtype
    split = units.by_unit(moved(x, False).to(dtype), name, repeat=True)
    states = map_tensors(hx, lambda t: units.by_unit(moved(t, True).to(dtype), name, repeat=True))
    repeat, found = repeated_module(module), []
    for u in range(units.num_units):
        own = {key: value[u] for key, value in values.items()}
        state = map_tensors(states, lambda t, u=u: moved(t[u], True).contiguous())  # type: ignore[misc]
        results = repeat(own, ((moved(split[u], False),) if hx is None else (moved(split[u], False), state), {}))
        found.append([moved(result, i > 0) for i, result in enumerate(results)])
    stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    first = [moved(output, i > 0) for i, output in enumerate(outputs)]
    rows = [_rows_again(result, output, units, name) for result, output in zip(stacked, first, strict=True)]
    return [moved(result, i > 0) for i, result in enumerate(rows)]


def _over_units(one: Any, values: dict[str, Tensor], split: list[Tensor]) -> list[Tensor]:
    try:
        with warnings.catch_warnings():  # a missing batching rule makes a rare layer slow, not wrong
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return list(torch.func.vmap(one)(values, split))
    except RuntimeError as error:
        if "Batching rule not implemented" not in str(error):
            raise
    number = next(iter(values.values())).shape[0]
    found = [one({key: v[u] for key, v in values.items()}, [t[u] for t in split]) for u in range(number)]
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def _rows_again(result: Tensor, output: Tensor, units: UnitMap, name: str) -> Tensor:
    if output.dim() == 0 or result.shape[2:] != output.shape[1:]:
        return output.detach()  # no row for each sample: the generic rule refuses a gradient to it
    return units.by_row(result, output.shape[0], name).to(output.dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor

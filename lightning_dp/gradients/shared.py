"""Layers called on what the whole batch shares: an embedding of ``torch.arange``, a network over a table of offsets.

Their output has no batch axis; it is broadcast when it meets the samples. So it is a function of parameters alone, and is
followed like one (:mod:`lightning_dp.gradients.bare`): through views, permutations and further layers, up to the first
function that mixes it with the samples. Only that function is differentiated per unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.gradients.bare import BareParameter, Expression, leaves_of, map_tensors, tensors_in

__all__ = ("ModuleCall", "calls_a_module", "module_expression", "only_constants", "unwrap")


@dataclass(frozen=True)
class ModuleCall:
    """A layer as a function of its parameters and inputs; ``module`` is run without its taps by whoever evaluates it."""

    module: nn.Module

    def __call__(self, parameters: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The layer's one output."""
        output: Tensor = torch.func.functional_call(self.module, dict(parameters), args, dict(kwargs))
        return output

    @property
    def __name__(self) -> str:
        return type(self.module).__name__


def unwrap(inputs: Any) -> tuple[Any, dict[int, Expression]]:
    """Inputs with ordinary tensors in place of followed ones, and the expressions of those by the tensors' identity."""
    expressions: dict[int, Expression] = {}

    def plain(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, BareParameter):
            return tensor
        value = tensor.plain()
        expressions[id(value)] = tensor.expression
        return value

    return map_tensors(inputs, plain), expressions


def module_expression(
    module: nn.Module, prefix: str, trainable: Mapping[str, Any], inputs: Any, expressions: Mapping[int, Expression]
) -> Expression:
    """The call of a layer on shared inputs as an expression of its trainable parameters.

    Args:
        module: the layer.
        prefix: its path and a dot, or nothing for the root.
        trainable: its trainable parameters by their names in it.
        inputs: ``(args, kwargs)`` of ordinary tensors.
        expressions: those of the inputs that are computed from parameters themselves.
    """
    args, kwargs = map_tensors(inputs, lambda t: expressions.get(id(t), t.detach()))
    parameters = {name: Expression(source=prefix + name) for name in trainable}
    return Expression(func=ModuleCall(module), args=(parameters, args, kwargs))


def calls_a_module(expression: Expression) -> bool:
    """Whether a value went through a layer that was called on shared inputs: then it has no batch axis."""
    return isinstance(expression.func, ModuleCall) or any(
        calls_a_module(leaf) for leaf in leaves_of((expression.args, expression.kwargs)) if isinstance(leaf, Expression)
    )


def only_constants(inputs: Any, constants: frozenset[int]) -> bool:
    """Whether all tensors of a call are computed from parameters or are buffers, which never hold samples."""
    return all(
        isinstance(t, BareParameter) or (not t.requires_grad and t.untyped_storage().data_ptr() in constants)
        for t in tensors_in(inputs)
        if t.numel()
    )

"""The table of layer rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.gradients.bare import tensors_in
from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.units import UnitMap

__all__ = ("LayerCall", "LayerRule", "find_rule", "register_rule")


@dataclass(frozen=True)
class LayerCall:
    """One recorded call of a layer and the gradients that came back to it: all that a rule sees.

    Attributes:
        module: the layer. Its parameters hold the values of the recorded forward pass.
        name: the layer's path, for messages.
        args, kwargs: what it was called with, detached.
        grads: the gradient of each floating-point output tensor, in the order in which they were returned; ``None``
            where none arrived. At least one is there.
        units: which rows belong to which privacy unit.
        trainable: names, in the module, of the parameters that take part.
        dtype: float32, or float64 for float64 parameters: norms and sums are kept in it.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: tuple[Tensor | None, ...]
    units: UnitMap
    trainable: frozenset[str]
    dtype: torch.dtype

    @property
    def x(self) -> Tensor:
        """The first tensor of the inputs, in :attr:`dtype` where it is floating-point."""
        x = next(tensors_in((self.args, self.kwargs)))
        return x.to(self.dtype) if x.is_floating_point() else x

    @property
    def grad(self) -> Tensor:
        """The first output gradient that arrived, in :attr:`dtype`."""
        return next(g for g in self.grads if g is not None).to(self.dtype)

    def arguments(self) -> dict[str, Any]:
        """What the layer was called with, by the names of its ``forward``'s parameters, defaults filled in."""
        bound = inspect.signature(self.module.forward).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


LayerRule = Callable[[LayerCall], dict[str, Contribution]]
"""From a recorded call to ``{parameter name: contribution}``, an entry for each of ``call.trainable``."""

_RULES: dict[type[nn.Module], LayerRule] = {}


def register_rule(*module_types: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Registers a :data:`LayerRule` for one or more module classes; a later registration replaces an earlier one."""

    def register(rule: LayerRule) -> LayerRule:
        for module_type in module_types:
            _RULES[module_type] = rule
        return rule

    return register


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule for ``module``, or ``None`` if the generic rule must do.

    A rule is only right for the computation that it was written for. It applies when the module's ``forward`` is the
    registered class's own and every parameter that this class owns sits where the class put it: a subclass with
    another ``forward``, or a weight that is itself computed (weight normalisation, parametrizations), is not covered.
    """
    for base in type(module).__mro__:
        rule = _RULES.get(base)
        if rule is not None:
            own = type(module).forward is base.forward  # type: ignore[attr-defined]
            # A forward patched onto the instance; or a method that a convolution's forward delegates to, which
            # subclasses override (weight standardisation).
            delegate = _function(type(module), "_conv_forward") is _function(base, "_conv_forward")
            plain = own and delegate and "forward" not in vars(module)
            in_place = all(name in module._parameters for name in ("weight", "bias") if hasattr(module, name))
            return rule if plain and in_place else None
    return None


def _function(kind: type, name: str) -> object:
    return getattr(kind, name, None)

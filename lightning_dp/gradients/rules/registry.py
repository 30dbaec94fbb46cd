"""The table of layer rules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.units import UnitMap

__all__ = ("LayerRule", "find_rule", "register_rule")

LayerRule = Callable[[nn.Module, Tensor, Tensor, UnitMap, frozenset[str], str], dict[str, Contribution]]
"""``(module, input, output_gradient, units, trainable, name) -> {parameter name: contribution}``.

``input`` ``(R, ...)`` and ``output_gradient`` ``(R, ...)`` arrive in the accumulation dtype (float32, or float64 for
float64 parameters); ``trainable`` names the module's own parameters that require a gradient. ``name`` is the module's
path, for messages.
"""

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

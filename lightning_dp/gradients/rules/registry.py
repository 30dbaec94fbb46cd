"""The table of layer rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import tensors_in
from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.reals import in_precision
from lightning_dp.gradients.replay import RandomState
from lightning_dp.gradients.rules.borrowed import borrowed_rule
from lightning_dp.gradients.units import UnitMap

__all__ = ("Entry", "LayerCall", "LayerRule", "RowCounter", "find_entry", "find_rule", "register_rule")


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
        outputs: the recorded output tensors, where the rule asked for them and they are unchanged; and
        random_state: the generators' state before the call; both where the layer drew random numbers, so that a
            rule which repeats the call can draw the same ones and see that it did.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: tuple[Tensor | None, ...]
    units: UnitMap
    trainable: frozenset[str]
    dtype: torch.dtype
    outputs: tuple[Tensor, ...] = ()
    random_state: RandomState | None = None

    @property
    def x(self) -> Tensor:
        """The first tensor of the inputs, in the precision :attr:`dtype` where it is floating-point."""
        first = self.args[0] if self.args else None
        x = first if isinstance(first, Tensor) else next(tensors_in((self.args, self.kwargs)))
        return in_precision(x, self.dtype)

    @property
    def grad(self) -> Tensor:
        """The first output gradient that arrived, in the precision :attr:`dtype`."""
        return in_precision(next(g for g in self.grads if g is not None), self.dtype)

    def refuse_without_batch(self, has_batch: bool) -> None:
        """Raises PrivacyError where a layer that also takes single samples got one: its axis 0 is then no batch axis."""
        if not has_batch:
            raise PrivacyError(
                f"{self.name} was called without a batch axis, so its rows cannot be assigned to units. Call it with the whole "
                "batch on axis 0, (batch, channels, ...) or (batch, ..., features), instead of sample by sample."
            )

    def rows_of_sequence(self, tensor: Tensor) -> Tensor:
        """Regroups ``(T, R, d)``, time or position first, to ``(U, K * T, d)``: a unit's rows one after the other."""
        return self.units.by_unit(tensor.transpose(0, 1), self.name).flatten(1, 2)

    def arguments(self) -> dict[str, Any]:
        """What the layer was called with, by the names of its ``forward``'s parameters, defaults filled in."""
        bound = inspect.signature(self.module.forward).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


PARAMETER_NAMES = ("weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""What the registered classes call their parameters, beside the recurrent layers' own lists of names."""

LayerRule = Callable[[LayerCall], dict[str, Contribution]]
"""From a recorded call to ``{parameter name: contribution}``, an entry for each of ``call.trainable``."""

RowCounter = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], int]
"""From a module and what it was called with to the number of batch rows."""


@dataclass(frozen=True)
class Entry:
    """A rule as it was registered; see :func:`register_rule`."""

    rule: LayerRule
    rows: RowCounter | None
    random: Callable[[nn.Module], bool] | None
    applies: Callable[[nn.Module], bool]
    complex_too: bool = False
    keeps_output: Callable[[Tensor], bool] | None = None


_RULES: dict[type[nn.Module] | str, Entry] = {}


def register_rule(
    *module_types: type[nn.Module] | str,
    rows: RowCounter | None = None,
    random: Callable[[nn.Module], bool] | None = None,
    applies: Callable[[nn.Module], bool] = lambda _: True,
    complex_too: bool = False,
    keeps_output: Callable[[Tensor], bool] | None = None,
) -> Callable[[LayerRule], LayerRule]:
    """Registers a :data:`LayerRule` for one or more module classes; a later registration replaces an earlier one.

    Args:
        *module_types: the classes; those of a library that may not be installed by name, ``"package.module.ClassName"``.
        rows: how many batch rows a call has, for layers whose outputs do not keep the batch on axis 0. The rule itself
            then moves the axis.
        random: whether a layer, as it is set up now, draws random numbers in its forward pass.
        applies: a further condition on a layer, beside those of :func:`find_rule`.
        complex_too: whether the rule is right for complex numbers as well: it conjugates what it multiplies the output
            gradient with. Without it, calls with complex parameters or outputs are left to the generic rule.
        keeps_output: of which outputs the rule has a use; it gets them where nothing has changed them in place since.
    """

    def register(rule: LayerRule) -> LayerRule:
        for module_type in module_types:
            _RULES[module_type] = Entry(rule, rows, random, applies, complex_too, keeps_output)
        return rule

    return register


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule for ``module``, or ``None`` if the generic rule must do.

    A rule is only right for the computation that it was written for. It applies when the module's ``forward`` is the
    registered class's own and every parameter that this class owns sits where the class put it: a subclass with
    another ``forward``, or a weight that is itself computed (weight normalisation, parametrizations), is not covered.
    A function that the user registered with Opacus for the module's class comes next.
    """
    entry = find_entry(module)
    return None if entry is None else entry.rule


def find_entry(module: nn.Module) -> Entry | None:
    """The rule for ``module`` and what was said of it; see :func:`find_rule`."""
    entry = _registered(module)
    if entry is None:
        rule = borrowed_rule(module)
        entry = None if rule is None else Entry(rule, None, None, lambda _: True)
    return entry


def _registered(module: nn.Module) -> Entry | None:
    for base in type(module).__mro__:
        entry = _RULES.get(base) or _RULES.get(f"{base.__module__}.{base.__qualname__}")
        if entry is not None:
            own = type(module).forward is base.forward  # type: ignore[attr-defined]
            # A forward patched onto the instance; or a method that a convolution's forward delegates to, which
            # subclasses override (weight standardisation).
            delegate = _function(type(module), "_conv_forward") is _function(base, "_conv_forward")
            plain = own and delegate and "forward" not in vars(module)
            computed = any(
                name not in module._parameters and isinstance(getattr(module, name, None), Tensor)
                for name in PARAMETER_NAMES
            )
            return entry if plain and not computed and entry.applies(module) else None
    return None


def _function(kind: type, name: str) -> object:
    return getattr(kind, name, None)

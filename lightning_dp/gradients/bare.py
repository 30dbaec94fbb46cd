"""Parameters that a module uses by itself, beside its children: class tokens, position embeddings, layer scales.

No hook sees such a use. While its owner runs, the parameter is therefore replaced by a :class:`BareParameter`, a
detached tensor that follows itself through functions of parameters alone (``expand``, slicing, ``exp``, interpolation,
...) and, at the first function that mixes it with other tensors, hands that one call to the tap. The generic rule then
differentiates just this call per unit. What cannot be followed is refused by name, never guessed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.reals import carries_gradient

__all__ = ("BareParameter", "Expression", "MixedCall", "Owner", "leaves_of", "map_leaves", "map_tensors", "tensors_in")

ROW_COUNTS = frozenset({"expand", "repeat", "broadcast_to", "tile"})  # functions that may name the number of rows


@dataclass(frozen=True)
class Expression:
    """A value computed from parameters alone, kept as the way to compute it again.

    Attributes:
        source: qualified parameter name, for a parameter itself.
        func, args, kwargs: the call, with nested expressions in place of tensors, for a computed value.
        item: which element of the call's result, for functions that return several.
    """

    source: str | None = None
    func: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    item: int | None = None

    def sources(self) -> set[str]:
        """The parameters that the value depends on."""
        if self.source is not None:
            return {self.source}
        return {
            s for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf, Expression) for s in leaf.sources()
        }

    def evaluate(self, parameters: Mapping[str, Tensor], rows: int, rows_per_unit: int, axis: int = 0) -> Tensor:
        """The value for one unit: where the call named the batch's ``rows`` for ``axis``, it names the unit's instead."""
        if self.source is not None:
            return parameters[self.source]
        assert self.func is not None
        name = getattr(self.func, "__name__", "")
        if name == "transpose" and sorted(self.args[1:]) == [0, 1]:
            axis = 1 - axis
        args, kwargs = map_leaves(
            (self.args, dict(self.kwargs)),
            lambda leaf: leaf.evaluate(parameters, rows, rows_per_unit, axis) if isinstance(leaf, Expression) else leaf,
        )
        if name in ROW_COUNTS:
            args = _replace_row_count(args, rows, rows_per_unit, axis)
        result = self.func(*args, **kwargs)
        value: Tensor = result if self.item is None else result[self.item]
        return value


@dataclass(frozen=True)
class MixedCall:
    """One function call that mixed bare parameters with tensors that may carry rows."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def sources(self) -> set[str]:
        """The parameters that take part."""
        return Expression(func=self.func, args=self.args, kwargs=self.kwargs).sources()


@dataclass(frozen=True)
class Owner:
    """The running module whose parameters are followed.

    Attributes:
        on_mixed: takes a mixed call and its result, returns the tapped result; or ``None`` if the result turns out to
            have no batch axis, so that it is followed on.
        constants: storage addresses of the module's buffers, which never carry rows (index tables, masks).
    """

    on_mixed: Callable[[MixedCall, Tensor], Tensor | None]
    constants: frozenset[int] = frozenset()

    def may_carry_rows(self, tensor: Tensor) -> bool:
        """Whether a tensor that meets a bare parameter may hold one row for each sample."""
        if tensor.requires_grad:
            return True
        return tensor.dim() > 0 and tensor.untyped_storage().data_ptr() not in self.constants


class BareParameter(torch.Tensor):
    """A detached stand-in for a parameter (or a function of parameters) while its owner's forward pass runs."""

    expression: Expression
    owner: Owner

    @staticmethod
    def wrap(value: Tensor, expression: Expression, owner: Owner) -> BareParameter:
        """A stand-in for ``value``, computed by ``expression`` while ``owner`` runs."""
        bare: BareParameter = torch.Tensor._make_subclass(BareParameter, value.detach())
        bare.expression, bare.owner = expression, owner
        return bare

    def plain(self) -> Tensor:
        """The value as an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)

    def tapped(self) -> Tensor:
        """The value as an ordinary tensor whose gradient reaches the tap: for handing it to another module."""
        value = self.plain()
        call = MixedCall(torch.clone, (self.expression,), {})
        tapped = self.owner.on_mixed(call, value.clone())
        return self if tapped is None else tapped

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = list(leaves_of((args, kwargs)))
        bare = [leaf for leaf in leaves if isinstance(leaf, BareParameter)]
        if not bare:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, BareParameter)]
        mixed = any(bare[0].owner.may_carry_rows(t) for t in others)
        name = getattr(func, "__name__", str(func))
        _refuse_in_place(name, kwargs, bare[0].expression)
        before = map_leaves((args, kwargs), lambda leaf: leaf.expression if isinstance(leaf, BareParameter) else leaf)
        with torch._C.DisableTorchFunctionSubclass():
            plain_args, plain_kwargs = map_leaves(
                (args, kwargs), lambda leaf: leaf.plain() if isinstance(leaf, BareParameter) else leaf
            )
            result = func(*plain_args, **plain_kwargs)
        if not any(isinstance(leaf, Tensor) and carries_gradient(leaf) for leaf in leaves_of(result)):
            return result  # a shape, a dtype, a comparison: nothing that a gradient passes through
        if mixed:
            if not isinstance(result, Tensor):
                raise PrivacyError(_cannot_follow(bare[0].expression, name, "it returns several tensors"))
            tapped = bare[0].owner.on_mixed(MixedCall(func, *before), result)
            if tapped is not None:
                return tapped
        if isinstance(result, Tensor):
            return BareParameter.wrap(result, Expression(None, func, before[0], before[1]), bare[0].owner)
        parts = [
            BareParameter.wrap(part, Expression(None, func, before[0], before[1], item=i), bare[0].owner)
            for i, part in enumerate(result)
        ]
        return type(result)(parts) if type(result) in (list, tuple) else tuple(parts)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists and dicts."""
    return (leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor))


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested tuples, lists and dicts with every tensor replaced by ``change(tensor)``."""
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf)


def leaves_of(value: Any) -> Iterator[Any]:
    """Everything inside nested tuples, lists and dicts that is none of these."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_of(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves_of(item)
    else:
        yield value


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with everything else inside them replaced by ``change(it)``."""
    if isinstance(value, Mapping):
        changed = {key: map_leaves(item, change) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, dict):
            return changed
        kept = copy.copy(value)  # a dict of a kind of its own, such as the outputs of Hugging Face models
        for key, item in changed.items():
            kept[key] = item
        return kept
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # Not by calling the class: packed sequences look at what they are made of, and these may be stand-ins.
        return type(value)._make(map_leaves(item, change) for item in value)  # type: ignore[attr-defined]
    if isinstance(value, tuple):
        return tuple(map_leaves(item, change) for item in value)
    if isinstance(value, list):
        return [map_leaves(item, change) for item in value]
    return change(value)


def _replace_row_count(args: Sequence[Any], rows: int, rows_per_unit: int, axis: int) -> tuple[Any, ...]:
    head, *sizes = args
    nested = bool(sizes) and isinstance(sizes[0], (tuple, list))
    numbers = list(sizes[0]) if nested else list(sizes)
    if len(numbers) > axis and numbers[axis] == rows:
        numbers[axis] = rows_per_unit
    return (head, tuple(numbers), *sizes[1:]) if nested else (head, *numbers)


def _refuse_in_place(name: str, kwargs: Mapping[str, Any], expression: Expression) -> None:
    in_place = name.endswith("_") and not name.endswith("__")
    augmented = name.startswith("__i") and name.endswith("__") and name not in {"__invert__", "__index__", "__int__"}
    if in_place or augmented or name == "__setitem__" or kwargs.get("out") is not None:
        raise PrivacyError(_cannot_follow(expression, name, "an in-place call hides its result from the tap"))


def _cannot_follow(expression: Expression, name: str, why: str) -> str:
    parameter = ", ".join(sorted(expression.sources()))
    return (
        f"parameter {parameter} is used by {name}, and its gradient per privacy unit cannot be followed there: {why}. "
        "Use the out-of-place function, move the parameter into a small module of its own, or freeze it with "
        "requires_grad_(False)."
    )

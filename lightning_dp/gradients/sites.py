"""Modules as the taps meet them: what is known of each, and how a tensor is put where a parameter stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_dp.gradients.bare import BareParameter, map_tensors
from lightning_dp.gradients.rules import LayerRule, RowCounter, find_entry

__all__ = ("Site", "get", "handed_over", "put")

COMPOSITES = (nn.MultiheadAttention,)
"""Modules that read their children's weights instead of calling the children: one call of the whole is recorded."""


@dataclass(frozen=True)
class Site:
    """What is known of a tapped module and looked up in every call."""

    label: str
    prefix: str
    kind: type[nn.Module]
    patched: bool
    rule: LayerRule | None
    complex_too: bool
    rows: RowCounter | None
    random: Callable[[nn.Module], bool] | None
    composite: bool
    bare: bool
    keeps_output: Callable[[Tensor], bool] | None

    @classmethod
    def of(cls, module: nn.Module, name: str) -> Site:
        """What the rules, and the module's class and children, say of it."""
        entry, composite = find_entry(module), isinstance(module, COMPOSITES)
        rule, rows, random = (None, None, None) if entry is None else (entry.rule, entry.rows, entry.random)
        complex_too, keeps_output = (False, None) if entry is None else (entry.complex_too, entry.keeps_output)
        # Parameters beside children are used by functions that no hook sees; those of a leaf, by its own forward.
        bare = rule is None and not composite and any(True for _ in module.children())
        label = f"{name or 'the root module'} ({type(module).__name__})"
        patched = "forward" in vars(module)
        return cls(
            label, f"{name}." if name else "", type(module), patched, rule, complex_too, rows, random, composite, bare,
            keeps_output,
        )  # fmt: skip


def handed_over(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keeps: Callable[[BareParameter], bool]
) -> Any:
    """The arguments with bare parameters among them turned into tapped tensors; learned states have the batch on axis 1.

    Those that have no batch axis (``keeps``) are followed on.
    """

    def tapped(t: Tensor) -> Tensor:
        return t.tapped() if isinstance(t, BareParameter) and not keeps(t) else t

    def state(t: Tensor) -> Tensor:
        rows_first = t.transpose(0, 1) if isinstance(t, BareParameter) and t.dim() > 1 else t
        return rows_first.tapped().transpose(0, 1) if isinstance(rows_first, BareParameter) else t

    if not isinstance(module, nn.RNNBase):
        return map_tensors((args, kwargs), tapped)
    named = {key: map_tensors(value, tapped if key == "input" else state) for key, value in kwargs.items()}
    return (*map_tensors(args[:1], tapped), *map_tensors(args[1:], state)), named


def get(module: nn.Module, name: str) -> nn.Parameter:
    """What stands where a parameter of that dotted name is: the parameter or a stand-in."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path)._parameters[leaf]  # type: ignore[return-value]


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Places a tensor where a parameter of that (dotted) name stands, without registering it as one."""
    if "." in name:
        path, _, name = name.rpartition(".")
        module = module.get_submodule(path)
    module._parameters[name] = value  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase) and name in module._flat_weights_names:
        # Recurrent layers hand a list of their own to the fused function.
        module._flat_weights[module._flat_weights_names.index(name)] = value

"""Parameters that another module than their owner reads: entries of parameter lists, weights handed to functions.

A ``ParameterList`` or ``ParameterDict`` is never called; the module around it reads what it holds. And some networks read
a weight of a layer without calling the layer: an attention written as one function of its projections' weights, a
``layer.forward(x)``. While the reading module runs, such a parameter is followed as if it were its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ("held_in_containers", "readers")

HOLDERS = (nn.ParameterList, nn.ParameterDict)
CONTAINERS = (*HOLDERS, nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""Modules that only hold others: they read nothing themselves."""


def held_in_containers(root: nn.Module) -> Iterator[str]:
    """Qualified names of the parameters in parameter lists and dicts."""
    for path, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, HOLDERS):
            for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
                yield f"{path}.{name}" if path else name


def readers(root: nn.Module, parameter: str) -> list[str]:
    """Paths of the modules around a parameter's owner that may read it, the nearest first.

    Args:
        root: the network.
        parameter: its qualified name.
    """
    found = []
    path = parameter.rpartition(".")[0]
    while path:
        path = path.rpartition(".")[0]
        if not isinstance(root.get_submodule(path), CONTAINERS):
            found.append(path)
    return found

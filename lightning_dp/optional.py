"""The one way to reach a package that the core install leaves out: found, or named with the extra that brings it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ("folder_of", "require")


def _advice(package: str, extra: str, purpose: str) -> str:
    return f"{purpose} needs {package}, which is not installed: pip install 'lightning-dp[{extra}]'."


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an extra.

    Args:
        module: Dotted name of the module.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something itself
        raise ModuleNotFoundError(_advice(module.split(".")[0], extra, purpose), name=module) from error


def folder_of(package: str, extra: str, purpose: str) -> Path:
    """The folder of an installed package whose data files are read; the package itself is not imported.

    Args:
        package: Name of a top-level package.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(_advice(package, extra, purpose), name=package)
    return Path(spec.submodule_search_locations[0])

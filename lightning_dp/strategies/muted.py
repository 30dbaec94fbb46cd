"""A copy of a module to try things on, which logs nothing."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients.bare import tensors_in

__all__ = ("muted_copy",)

ModuleKind = TypeVar("ModuleKind", bound=nn.Module)


def muted_copy(module: ModuleKind) -> ModuleKind:
    """A deep copy that keeps its trainer but logs nothing: what a check computes must not leave it."""
    try:
        twin = copy.deepcopy(module, _detached_copies(module))
    except Exception as error:
        raise PrivacyConfigError(
            f"the self-check works on a deep copy of the module, which cannot be made "
            f"({type(error).__name__}: {error}). Keep locks, files and connections out of the module's attributes, or "
            "use DPStrategy(self_check=False) once the same network has passed the check."
        ) from error
    if isinstance(module, LightningModule) and isinstance(twin, LightningModule):
        twin.__dict__["log"] = twin.__dict__["log_dict"] = _silence
        twin._trainer = module._trainer
    return twin


def _detached_copies(module: nn.Module) -> dict[int, Any]:
    """For ``deepcopy``: what to put for tensors with a graph (a kept loss, a list of outputs), which it cannot copy."""
    values = [value for child in module.modules() for value in vars(child).values()]
    return {id(t): t.detach().clone() for t in tensors_in(values) if t.grad_fn is not None}


def _silence(*_: Any, **__: Any) -> None:
    return None

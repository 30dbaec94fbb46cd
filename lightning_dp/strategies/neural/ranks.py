"""Gradients of several ranks, where nothing in them is private any more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_dp import _compat
from lightning_dp.gradients.reals import carries_gradient

__all__ = ("average_over_ranks",)


def average_over_ranks(module: nn.Module, total: Callable[[Tensor], Tensor], world_size: int) -> None:
    """Replaces each gradient by the ranks' mean, as DistributedDataParallel does, and running statistics by rank 0's.

    The gradients must be functions of releases alone: raw ones must never come here.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    for parameter, anywhere in zip(parameters, total(has).tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            total(parameter.grad).div_(world_size)
    _compat.broadcast_tensors([b for b in module.buffers() if carries_gradient(b)])

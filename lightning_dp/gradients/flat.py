"""Many tensors as one: sums over groups of parameters, and parameters as parts of a flat buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_dp.gradients.reals import real_dtype, real_shape

__all__ = ("group_sums", "same_kind", "views", "zeros")


def group_sums(norms: Sequence[tuple[int, Tensor]], num_groups: int) -> Tensor:
    """Squared norms ``(G, U)`` of each clipping group from those of its parameters."""
    if num_groups == 1:
        return torch.stack([norm for _, norm in norms]).sum(0, keepdim=True)
    total = norms[0][1].new_zeros(num_groups, norms[0][1].shape[0])
    for group, norm in norms:
        total[group] += norm
    return total


def views(flat: Tensor, group: Sequence[nn.Parameter]) -> list[Tensor]:
    """Consecutive parts of a flat real tensor in the shapes of the parameters' real coordinates."""
    parts = torch.split(flat, [real_shape(p).numel() for p in group])
    return [part.view(real_shape(p)) for part, p in zip(parts, group, strict=True)]


def zeros(group: Sequence[nn.Parameter]) -> Tensor:
    """A flat real tensor for parameters of one kind."""
    size = sum(real_shape(p).numel() for p in group)
    return torch.zeros(size, dtype=real_dtype(group[0].dtype), device=group[0].device)


def same_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters grouped by device and precision, in order: one flat buffer, one noise call, one reduction for each."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, real_dtype(parameter.dtype)), []).append(parameter)
    return list(groups.values())

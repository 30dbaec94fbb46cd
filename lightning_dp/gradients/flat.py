"""Many tensors as one: sums over groups of parameters, and parameters as parts of a flat buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ("group_sums", "same_kind", "views")


def group_sums(norms: Sequence[tuple[int, Tensor]], num_groups: int) -> Tensor:
    """Squared norms ``(G, U)`` of each clipping group from those of its parameters."""
    if num_groups == 1:
        return torch.stack([norm for _, norm in norms]).sum(0, keepdim=True)
    total = norms[0][1].new_zeros(num_groups, norms[0][1].shape[0])
    for group, norm in norms:
        total[group] += norm
    return total


def views(flat: Tensor, group: Sequence[nn.Parameter]) -> list[Tensor]:
    """Consecutive parts of a flat tensor in the parameters' shapes."""
    parts = torch.split(flat, [p.numel() for p in group])
    return [part.view(p.shape) for part, p in zip(parts, group, strict=True)]


def same_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters grouped by device and dtype, in order: one flat buffer, one noise call, one reduction for each."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return list(groups.values())

"""The independent truth: one ordinary backward pass for each unit, clipped by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def squared_loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A loss with curvature in every output, so that no gradient is the same for all units."""
    out = module(x).flatten(1)
    return ((out - torch.sin(torch.arange(out.shape[1], dtype=out.dtype)) * y[:, None]) ** 2).sum(1).mean()


def unit_gradients(module: nn.Module, loss: Loss, x: Tensor, y: Tensor, rows: int = 1) -> list[list[Tensor]]:
    """The gradient of each unit's own loss, unit by unit; a unit is ``rows`` consecutive rows of ``x``."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for i in range(len(x) // rows):
        part = slice(i * rows, (i + 1) * rows)
        grads = torch.autograd.grad(loss(module, x[part], y[part]), parameters, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    return found


def clipped_sum(
    gradients: Sequence[Sequence[Tensor]], bound: float, clipping: str, layers: Sequence[int]
) -> list[Tensor]:
    """``sum_u clip(g_u)`` by its definition; ``layers`` gives each parameter's layer number."""
    total = [torch.zeros_like(g) for g in gradients[0]]
    count = len(set(layers))
    for unit in gradients:
        flat_norm = math.sqrt(sum(float(g.abs().double().square().sum()) for g in unit))
        for i, g in enumerate(unit):
            if clipping == "per_layer":
                norm = math.sqrt(
                    sum(
                        float(h.abs().double().square().sum())
                        for h, layer in zip(unit, layers, strict=True)
                        if layer == layers[i]
                    )
                )
                factor = min(1.0, bound / math.sqrt(count) / norm) if norm else 1.0
            elif clipping == "automatic":
                factor = bound / (flat_norm + 0.01)
            else:
                factor = min(1.0, bound / flat_norm) if flat_norm else 1.0
            total[i] += factor * g
    return total


def layer_numbers(module: nn.Module) -> list[int]:
    """Which module owns each trainable parameter, in the order of ``module.parameters()``."""
    owner: dict[nn.Parameter, int] = {}
    for number, part in enumerate(module.modules()):
        for p in part.parameters(recurse=False):
            owner.setdefault(p, number)
    return [owner[p] for p in module.parameters() if p.requires_grad]


def relative_error(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest deviation over all parameters, relative to the largest entry of each parameter's truth.

    A parameter whose gradient vanishes (a bias before a softmax) is held to the scale of the others instead.
    """
    floor = 1e-2 * max(float(b.abs().max()) for b in other) + 1e-12
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), floor))
    return worst

"""Normalisation layers that act within one row: LayerNorm, GroupNorm, InstanceNorm, RMSNorm."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.gradients.contributions import CHUNK_ELEMENTS, Contribution, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("channel_norm_rule", "channels_first_norm_rule", "shape_norm_rule")


INSTANCE_AXES = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
"""How many axes a batch has; with one less it is a single sample."""


# timm's own classes differ from torch's in their arguments, and in a faster kernel for the same function.
@register_rule(nn.LayerNorm, nn.RMSNorm, "timm.layers.norm.LayerNorm")
def shape_norm_rule(call: LayerCall) -> dict[str, Contribution]:
    """Affine parameters over the trailing axes: sum over every position before them."""
    module, x, grad, units = call.module, call.x, call.grad, call.units
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    shape = list(module.normalized_shape)
    call.refuse_without_batch(grad.dim() > len(shape))

    def positions(t: Tensor) -> Tensor:
        return units.by_unit(t, call.name).reshape(units.num_units, -1, *shape).sum(1)

    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        if isinstance(module, nn.LayerNorm):
            normal = F.layer_norm(x, shape, None, None, module.eps)
        else:
            normal = F.rms_norm(x, shape, None, module.eps)
        found["weight"] = PerUnit(positions(grad * normal))
    if "bias" in call.trainable:
        found["bias"] = PerUnit(positions(grad))
    return found


@register_rule("timm.layers.norm.LayerNorm2d")
def channels_first_norm_rule(call: LayerCall) -> dict[str, Contribution]:
    """LayerNorm over axis 1 of ``(R, C, H, W)``."""
    x, grad = call.x.permute(0, 2, 3, 1), call.grad.permute(0, 2, 3, 1)
    return shape_norm_rule(replace(call, args=(x,), kwargs={}, grads=(grad,)))


@register_rule(
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    "timm.layers.norm.GroupNorm",
    "timm.layers.norm.GroupNorm1",
)
def channel_norm_rule(call: LayerCall) -> dict[str, Contribution]:
    """Affine parameters over axis 1: sum over the spatial axes and the unit's rows."""
    module, x, grad = call.module, call.x, call.grad
    if isinstance(module, nn.GroupNorm):
        groups = module.num_groups
    else:
        assert isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d))
        axes = next(axes for kind, axes in INSTANCE_AXES.items() if isinstance(module, kind))
        call.refuse_without_batch(grad.dim() == axes)
        groups = x.shape[1]
    rows, channels = x.shape[:2]
    size = max(1, CHUNK_ELEMENTS // max(1, x[0].numel()))
    parts = [_by_row(x[i : i + size], grad[i : i + size], groups, module.eps) for i in range(0, rows, size)]
    found: dict[str, Contribution] = {}
    for number, name in enumerate(("weight", "bias")):
        if name in call.trainable:
            gradients = parts[0][number] if len(parts) == 1 else torch.cat([part[number] for part in parts])
            found[name] = PerUnit(call.units.summed(gradients.view(rows, channels), call.name))
    return found


def _by_row(x: Tensor, grad: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of the affine parameters for each row and channel, ``(R * C,)`` each, by the library's own kernel.

    Normalising R rows of C channels in G groups each is normalising one row of R * C channels in R * G groups, whose
    affine parameters are then as many as rows and channels.
    """
    rows, channels, length = x.shape[0], x.shape[1], x[0, 0].numel()
    x, grad = x.reshape(1, rows * channels, length), grad.reshape(1, rows * channels, length)
    shape = (1, rows * channels, length, rows * groups)
    _, mean, rstd = torch.native_group_norm(x, None, None, *shape, eps)
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        grad.contiguous(), x.contiguous(), mean, rstd, x.new_ones(rows * channels), *shape, (False, True, True)
    )
    return weight, bias

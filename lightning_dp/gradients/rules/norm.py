"""Normalisation layers that act within one row: LayerNorm, GroupNorm, InstanceNorm, RMSNorm."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("channel_norm_rule", "channels_first_norm_rule", "shape_norm_rule")


# timm's own classes differ from torch's in their arguments, and in a faster kernel for the same function.
@register_rule(nn.LayerNorm, nn.RMSNorm, "timm.layers.norm.LayerNorm")
def shape_norm_rule(call: LayerCall) -> dict[str, Contribution]:
    """Affine parameters over the trailing axes: sum over every position before them."""
    module, x, grad, units = call.module, call.x, call.grad, call.units
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    shape = list(module.normalized_shape)

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
    module, x, grad, units = call.module, call.x, call.grad, call.units

    def positions(t: Tensor) -> Tensor:
        grouped = units.by_unit(t.reshape(*t.shape[:2], -1).sum(2), call.name)
        return grouped.sum(1)

    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        if isinstance(module, nn.GroupNorm):
            normal = F.group_norm(x, module.num_groups, None, None, module.eps)
        else:
            assert isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d))
            normal = F.instance_norm(x, use_input_stats=True, eps=module.eps)
        found["weight"] = PerUnit(positions(torch.mul(grad, normal)))
    if "bias" in call.trainable:
        found["bias"] = PerUnit(positions(grad))
    return found

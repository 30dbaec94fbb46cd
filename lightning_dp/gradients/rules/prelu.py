"""PReLU, with one slope or one for each channel."""

from __future__ import annotations

from torch import nn

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("prelu_rule",)


@register_rule(nn.PReLU)
def prelu_rule(call: LayerCall) -> dict[str, Contribution]:
    """``y = max(x, 0) + a min(x, 0)``: the slope's gradient is the output gradient times the negative part."""
    module = call.module
    assert isinstance(module, nn.PReLU)
    slopes = call.grad * call.x.clamp(max=0)
    if module.num_parameters == 1:
        slopes = slopes.reshape(slopes.shape[0], -1).sum(1, keepdim=True)
    else:  # axis 1 holds the channels
        slopes = slopes.reshape(*slopes.shape[:2], -1).sum(2)
    return {"weight": PerUnit(call.units.by_unit(slopes, call.name).sum(1))}

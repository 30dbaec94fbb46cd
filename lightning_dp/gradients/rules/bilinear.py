"""Bilinear layers."""

from __future__ import annotations

from torch import nn

from lightning_dp.gradients.contributions import Contribution, OuterProduct, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("bilinear_rule",)


@register_rule(nn.Bilinear)
def bilinear_rule(call: LayerCall) -> dict[str, Contribution]:
    """``y_k = x1^T W_k x2 + b_k``: a linear layer on the products of the two inputs' features."""
    call.refuse_without_batch(call.grad.dim() > 1)
    arguments = call.arguments()
    left, right = (
        call.units.by_unit(arguments[key].to(call.dtype), call.name).flatten(1, -2) for key in ("input1", "input2")
    )
    b = call.units.by_unit(call.grad, call.name).flatten(1, -2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        a = (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(2)
        found["weight"] = OuterProduct(a.unsqueeze(1), b.unsqueeze(1), call.module.get_parameter("weight").shape)
    if "bias" in call.trainable:
        found["bias"] = PerUnit(b.sum(1))
    return found

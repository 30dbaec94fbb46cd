"""Convolutions with standardised weights: the gradient of the weight in use, pulled back to the parameters, unit by unit.

The layer convolves with ``k * w_hat``, ``w_hat = (w - mean) / sqrt(var + eps)`` over each output channel and ``k = gain *
scale`` a number for each channel. What standardisation does to a gradient G of the weight in use is linear, and the same for
every unit: ``k / sqrt(var + eps) * (G - mean(G) - w_hat * mean(w_hat * G))``, by channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.contributions.base import row_squares, unit_chunks
from lightning_dp.gradients.contributions.product_sum import energies, resolution, rounding
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("StandardisedWeight", "standardised_conv_rule")


class StandardisedWeight(Contribution):
    """A weight of which the standardised and scaled one is used.

    Args:
        used: gradients of the weight in use.
        normal: the standardised weight ``(C_out, d)``.
        factor: ``k / sqrt(var + eps)``, ``(C_out, 1)``.
    """

    def __init__(self, used: ConvWeight, normal: Tensor, factor: Tensor) -> None:
        self.used, self.normal, self.factor = used, normal, factor
        self.num_units, self.shape = used.num_units, used.shape

    def pulled_back(self, gradients: Tensor) -> Tensor:
        """From gradients of the weight in use ``(S, *shape)`` to those of the parameter."""
        rows = gradients.flatten(2)
        rows = rows - rows.mean(-1, keepdim=True)
        rows = rows - self.normal * (rows * self.normal).mean(-1, keepdim=True)
        return (rows * self.factor).view(-1, *self.shape)

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.pulled_back(self.used.per_unit(start, stop))

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return self.pulled_back(self.used.weighted_sum(weights).unsqueeze(0))[0]

    @override
    def keep(self, mask: Tensor) -> Contribution:
        kept = self.used.keep(mask)
        assert isinstance(kept, ConvWeight)
        return StandardisedWeight(kept, self.normal, self.factor)

    @override
    def squared_norms(self) -> Tensor:
        length, d, p = self.used.sizes
        by_group = self.factor.view(1, -1, 1, p)
        norms, least = [], []
        for start, stop in unit_chunks(self.num_units, max(self.shape.numel(), length * d * self.used.groups)):
            a, b = self.used.columns(start, stop)
            gradients = self.used.in_shape((b.mT @ a).reshape(stop - start, -1))
            squares = row_squares(self.pulled_back(gradients))
            # Terms that cancel, among themselves or in the part that standardisation takes away, leave their rounding
            # errors, which reach the sum: a unit never counts as smaller than what that arithmetic can resolve.
            lost, terms = rounding((energies(a), energies(b * by_group)), self.used.sizes)
            norms.append(squares + lost)
            least.append(terms * resolution(length))
        return torch.maximum(torch.cat(norms), torch.cat(least))


@register_rule(
    "lightning_dp.models.weight_standardised.StandardisedConv2d",
    "timm.layers.std_conv.StdConv2d",
    "timm.layers.std_conv.ScaledStdConv2d",
)
def standardised_conv_rule(call: LayerCall) -> dict[str, Contribution]:
    """The weight, its gain where there is one, and the bias of a convolution with a standardised weight."""
    module, units = call.module, call.units
    assert isinstance(module, nn.Conv2d)
    geometry = ConvGeometry(module)
    weight, gain = module.weight.detach().to(call.dtype), getattr(module, "gain", None)
    eps, scale = float(module.eps), float(getattr(module, "scale", 1.0))  # type: ignore[arg-type]
    rows = weight.flatten(1)
    variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    normal = (rows - mean) * inverse
    k = scale if gain is None else scale * gain.detach().to(call.dtype).view(-1, 1)
    x = geometry.pad(call.x)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        by_unit, grad = units.by_unit(x, call.name), units.by_unit(call.grad, call.name)
        found["weight"] = StandardisedWeight(ConvWeight(by_unit, grad, weight.shape, geometry), normal, k * inverse)
    if "gain" in call.trainable:  # the output without the gain, against the output's gradient
        used = (scale * normal).view_as(weight)
        plain = F.conv2d(x, used, None, module.stride, tuple(geometry.padding), module.dilation, module.groups)
        each = (plain * call.grad).flatten(2).sum(2)
        found["gain"] = PerUnit(units.by_unit(each, call.name).sum(1)[..., None, None, None])
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.by_unit(call.grad.flatten(2).sum(2), call.name).sum(1))
    return found

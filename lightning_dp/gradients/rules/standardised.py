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
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("StandardisedWeight", "standardised_conv_rule")

ROUNDED = 2.0**-22  # what rounding may hide, as a share of the norms of all terms: their errors have either sign
HIDDEN = 2.0**-11  # the most that it may hide of a squared norm
TINY = 1e-12  # factors from which on outputs can be divided by them


class StandardisedWeight(Contribution):
    """A weight of which the standardised one is used, scaled by ``k``.

    With ``s`` the sum of a row of G and ``c`` its product with ``w_hat``, whose mean is 0, what standardisation takes away from
    ``||G||^2`` is ``(s^2 + c^2 (2 - ||w_hat||^2 / d)) / d``: a row's length d, and no gradient built.

    Args:
        used: gradients of the weight in use, with the output gradients already multiplied by ``k / sqrt(var + eps)``.
        normal: the standardised weight ``(C_out, d)``.
        sums: of the rows of these gradients, ``(U, C_out)``.
        products: of these rows with the standardised weight, ``(U, C_out)``.
    """

    def __init__(self, used: ConvWeight, normal: Tensor, sums: Tensor, products: Tensor) -> None:
        self.used, self.normal, self.sums, self.products = used, normal, sums, products
        self.num_units, self.shape = used.num_units, used.shape

    def pulled_back(self, gradients: Tensor) -> Tensor:
        """From gradients of the weight in use ``(S, *shape)`` to those of the parameter."""
        rows = gradients.flatten(2)
        rows = rows - rows.mean(-1, keepdim=True)
        rows = rows - self.normal * (rows * self.normal).mean(-1, keepdim=True)
        return rows.view(-1, *self.shape)

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
        return StandardisedWeight(kept, self.normal, self.sums, self.products)

    @override
    def choose_route(self, memory: Memory) -> None:
        self.used.choose_route(memory)

    @override
    def squared_norms(self) -> Tensor:
        used, d = self.used, self.normal.shape[1]
        whole = used.norms()
        share = 2 - self.normal.square().mean(-1)
        left = whole - (self.sums.square() + self.products.square() * share).sum(1) / d
        # A difference of rounded numbers: what they may hide is added, and where that would matter rows are looked at.
        hidden = ROUNDED * (whole * used.most_terms()).sqrt()
        self.doubtful = hidden > HIDDEN * left
        if used.doubtful is not None:
            self.doubtful |= used.doubtful
        norms = left + hidden
        # What is taken away leaves its rounding errors, which reach the sum.
        if not used.nothing_cancels(norms):
            norms = used.never_below_rounding(norms)
        used.drop_if_held()
        return norms

    @override
    def repaired(self, norms: Tensor) -> Tensor:
        if self.doubtful is None:
            return norms
        norms = norms.clone()
        for start, stop in unit_chunks(self.num_units, self.shape.numel()):
            doubtful = self.doubtful[start:stop]
            if bool(doubtful.any()):
                exact = self.used.bounded(row_squares(self.per_unit(start, stop)), start)
                norms[start:stop] = torch.where(doubtful, exact, norms[start:stop])
        return norms


@register_rule(
    "lightning_dp.models.weight_standardised.StandardisedConv2d",
    "timm.layers.std_conv.StdConv2d",
    "timm.layers.std_conv.ScaledStdConv2d",
    keeps_output=True,
)
def standardised_conv_rule(call: LayerCall) -> dict[str, Contribution]:
    """The weight, its gain where there is one, and the bias of a convolution with a standardised weight."""
    module, units = call.module, call.units
    assert isinstance(module, nn.Conv2d)
    geometry = ConvGeometry(module)
    weight, gain = module.weight.detach().to(call.dtype), getattr(module, "gain", None)
    eps, scale = float(module.eps), float(getattr(module, "scale", 1.0))  # type: ignore[arg-type]
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)  # measured: torch.var is ten times slower
    normal = centred * inverse
    ones = weight.new_ones(weight.shape[0])
    k = scale * (ones if gain is None else gain.detach().to(call.dtype).view(-1))
    found: dict[str, Contribution] = {}
    if call.trainable & {"weight", "gain"}:
        products = _products(call, geometry, normal.view(weight.shape), k)
        if "weight" in call.trainable:
            factor = k * inverse.view(-1)
            x, grad = geometry.pad(call.x), call.grad * factor.view(-1, 1, 1)
            used = ConvWeight(units.by_unit(x, call.name), units.by_unit(grad, call.name), weight.shape, geometry)
            sums = units.summed(_row_sums(x, grad, geometry), call.name)
            found["weight"] = StandardisedWeight(used, normal, sums, products * factor)
        if gain is not None and "gain" in call.trainable:
            found["gain"] = PerUnit((scale * products).view(-1, *gain.shape))
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.summed(call.grad.flatten(2).sum(2), call.name))
    return found


def _products(call: LayerCall, geometry: ConvGeometry, normal: Tensor, k: Tensor) -> Tensor:
    """Of each unit's gradient of the weight in use with the standardised weight, by channels: ``(U, C_out)``.

    That is the product of output gradients with the output of a convolution with the standardised weight, which is the
    layer's own output divided by ``k``, if that was kept as precisely as it is needed.
    """
    grad = call.grad
    kept = [y for y in call.outputs if y.dtype == call.dtype and call.module.bias is None]
    if kept and k.device.type == "cpu" and float(k.abs().min()) > TINY:  # the answer would stall a GPU
        y, divisor = kept[0], k
    else:
        x = geometry.pad(call.x)
        y = F.conv2d(x, normal, None, geometry.stride, tuple(geometry.padding), geometry.dilation, geometry.groups)
        divisor = torch.ones_like(k)
    return call.units.summed(torch.linalg.vecdot(grad.flatten(2), y.flatten(2)) / divisor, call.name)


def _row_sums(x: Tensor, grad: Tensor, geometry: ConvGeometry) -> Tensor:
    """Sums of the rows of the weight's gradients, ``(R, C_out)``: the sum of each patch, times the output gradients."""
    groups = geometry.groups
    channels = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(2)
    window = x.new_ones(groups, 1, *geometry.kernel)
    patches = F.conv2d(channels, window, None, geometry.stride, tuple(geometry.padding), geometry.dilation, groups)
    by_group = grad.reshape(grad.shape[0], groups, -1, grad.shape[2:].numel())
    sums: Tensor = torch.linalg.vecdot(by_group, patches.flatten(2).unsqueeze(2))
    return sums.flatten(1)

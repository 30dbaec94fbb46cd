"""Convolutions with standardised weights: the gradient of the weight in use, pulled back to the parameters, unit by unit.

The layer convolves with ``k * w_hat``, ``w_hat = (w - mean) / sqrt(var + eps)`` over each output channel and ``k = gain *
scale`` a number for each channel. What standardisation does to a gradient G of the weight in use is linear, and the same for
every unit: ``k / sqrt(var + eps) * (G - mean(G) - w_hat * mean(w_hat * G))``, by channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.contributions.base import row_squares, unit_chunks
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules.conv import SIDE_BY_SIDE, ConvGeometry, ConvWeight
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
        output: the convolution of the inputs with the standardised weight, by unit, times ``k``; ``None``: not to be had.
        k: ``(C_out,)``, none of it 0 where there is an output.
    """

    def __init__(self, used: ConvWeight, normal: Tensor, output: Tensor | None, k: Tensor) -> None:
        self.used, self.normal, self.k = used, normal, k
        self.num_units, self.shape = used.num_units, used.shape
        self._output = output
        self._found: tuple[Tensor, Tensor] | None = None

    def sums_and_products(self) -> tuple[Tensor, Tensor]:
        """Of the rows of the gradients, their sums and their products with the standardised weight: both ``(U, C_out)``."""
        if self._found is None:
            used = self.used
            if used.held is not None:
                rows = used.held.view(self.num_units, self.shape[0], -1)
                self._found = rows.sum(-1), torch.linalg.vecdot(rows, used.row_order(self.normal.view(self.shape)))
            else:
                self._found = self._from_records()
            self._output = None
        return self._found

    def _from_records(self) -> tuple[Tensor, Tensor]:
        """The sum of each patch, and the output, times the output gradients: no row is built."""
        used, geometry = self.used, self.used.geometry
        x, grad, groups = used.a.flatten(0, 1), used.b.flatten(0, 1).flatten(2), geometry.groups
        channels = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(2)
        patches = geometry.convolved(channels, x.new_ones(groups, 1, *geometry.kernel)).flatten(2)
        by_group = grad.view(grad.shape[0], groups, -1, grad.shape[2])
        sums = torch.linalg.vecdot(by_group, patches.unsqueeze(2)).flatten(1)
        if self._output is None:
            products = torch.linalg.vecdot(grad, geometry.convolved(x, self.normal.view(self.shape)).flatten(2))
        else:
            products = torch.linalg.vecdot(grad, self._output.flatten(0, 1).flatten(2)) / self.k
        by_unit = (t.view(self.num_units, -1, self.shape[0]).sum(1) for t in (sums, products))
        return next(by_unit), next(by_unit)

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
        return StandardisedWeight(kept, self.normal, None, self.k)

    @override
    def choose_route(self, memory: Memory) -> None:
        self.used.choose_route(memory)

    @override
    def squared_norms(self) -> Tensor:
        used, d = self.used, self.normal.shape[1]
        whole = used.norms()
        sums, products = self.sums_and_products()
        share = 2 - self.normal.square().mean(-1)
        left = whole - (sums.square() + products.square() * share).sum(1) / d
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


class StandardisedGain(Contribution):
    """The gain of a standardised weight: products of gradients and standardised weight, which the weight's norms need too.

    Args:
        weight: the weight's contribution.
        factor: what the products are multiplied with, ``(C_out,)``.
        shape: the gain's shape.
    """

    def __init__(self, weight: StandardisedWeight, factor: Tensor, shape: torch.Size) -> None:
        self.weight, self.factor = weight, factor
        self.num_units, self.shape = weight.num_units, shape

    @override
    def real(self) -> PerUnit:
        return PerUnit((self.weight.sums_and_products()[1] * self.factor).view(-1, *self.shape))

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.real().per_unit(start, stop)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return self.real().weighted_sum(weights)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return self.real().keep(mask)


def _small(output: Tensor) -> bool:
    """On many positions gradients are held, and tell all that is needed."""
    return output.shape[2:].numel() <= SIDE_BY_SIDE


@register_rule(
    "lightning_dp.models.weight_standardised.StandardisedConv2d",
    "timm.layers.std_conv.StdConv2d",
    "timm.layers.std_conv.ScaledStdConv2d",
    keeps_output=_small,
)
def standardised_conv_rule(call: LayerCall) -> dict[str, Contribution]:
    """The weight, its gain where there is one, and the bias of a convolution with a standardised weight."""
    module, units, name = call.module, call.units, call.name
    assert isinstance(module, nn.Conv2d)
    call.refuse_without_batch(call.grad.dim() == 4)
    geometry = ConvGeometry(module)
    weight, gain = module.weight.detach().to(call.dtype), getattr(module, "gain", None)
    eps, scale = float(module.eps), float(getattr(module, "scale", 1.0))  # type: ignore[arg-type]
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)  # measured: torch.var is ten times slower
    normal = centred * inverse
    ones = weight.new_ones(weight.shape[0])
    k = scale * (ones if gain is None else gain.detach().to(call.dtype).view(-1))
    factor = k * inverse.view(-1)
    divisible = k.device.type == "cpu" and float(k.abs().min()) > TINY  # the answer would stall a GPU
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        x, grad = geometry.pad(call.x), call.grad * factor.view(-1, 1, 1)
        used = ConvWeight(units.by_unit(x, name), units.by_unit(grad, name), weight.shape, geometry)
        kept = [y for y in call.outputs if y.dtype == call.dtype and module.bias is None and divisible]
        found["weight"] = StandardisedWeight(used, normal, units.by_unit(kept[0], name) if kept else None, k)
    if gain is not None and "gain" in call.trainable:
        weights = found.get("weight")
        if isinstance(weights, StandardisedWeight) and divisible:
            found["gain"] = StandardisedGain(weights, scale / factor, gain.shape)
        else:
            output = geometry.convolved(geometry.pad(call.x), normal.view(weight.shape))
            products = torch.linalg.vecdot(call.grad.flatten(2), output.flatten(2))
            found["gain"] = PerUnit((scale * units.summed(products, name)).view(-1, *gain.shape))
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.summed(call.grad.flatten(2).sum(2), name))
    return found

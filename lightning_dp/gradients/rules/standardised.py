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
from lightning_dp.gradients.contributions.base import unit_chunks
from lightning_dp.gradients.contributions.product_sum import energies, resolution, rounding
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("StandardisedWeight", "standardised_conv_rule")

DIFFERENCE = 2.0**-8  # a squared norm above this share of the numbers that it is a difference of
ROUNDED = 2.0**-20  # ... has lost at most this share of them to rounding


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
        self._share = 2 - normal.square().mean(-1)
        self._found: tuple[Tensor, Tensor] | None = None

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
    def choose_route(self, memory: Memory) -> None:
        self.used.choose_route(memory)

    @override
    def squared_norms(self) -> Tensor:
        used, norms = self.used, self._norms_and_products()[0]
        factors = self.factor.view(-1).square()
        of_b = (torch.linalg.vector_norm(used.b.flatten(3), dim=3).square() * factors).sum((1, 2))
        if not used.nothing_cancels(norms, of_b):
            norms = self._never_below_rounding(norms)
        used.drop_if_held()
        return norms

    def products(self) -> Tensor:
        """Of each unit's gradient of the weight in use with the standardised weight, channel by channel: ``(U, C_out)``."""
        return self._norms_and_products()[1]

    def _norms_and_products(self) -> tuple[Tensor, Tensor]:
        if self._found is None:
            if self.used.route == "held":
                self.used.flat()
            normal = self.used.row_order(self.normal.view(self.shape))
            chunks = unit_chunks(self.num_units, self.shape.numel())
            norms, products = zip(*(self._of_rows(self.used.rows(*chunk), normal) for chunk in chunks), strict=True)
            self._found = torch.cat(norms), torch.cat(products)
        return self._found

    def _of_rows(self, rows: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms ``(S,)`` of what standardisation leaves, and products with the standardised weight ``(S, C_out)``.

        With ``m`` the mean of a row and ``c`` that of its product with ``w_hat``, whose mean is 0, what is taken away from
        ``||G||^2`` is ``d m^2 + c^2 (2 d - ||w_hat||^2)``.

        Args:
            rows: gradients of the weight in use ``(S, C_out, d)``.
            normal: the standardised weight ``(C_out, d)``, in the order of the rows.
        """
        factors, d = self.factor.view(-1).square(), rows.shape[-1]
        sums, products = rows.sum(-1), torch.linalg.vecdot(rows, normal)
        taken = (sums.square() + products.square() * self._share) / d
        ceiling = (energies(rows) * factors).sum(1)
        squares = ceiling - (taken * factors).sum(1)
        # The difference is taken of rounded numbers; what they may hide is added. Where that would matter, row by row.
        if rows.device.type == "cpu" and bool((squares >= DIFFERENCE * ceiling).all()):  # the answer would stall a GPU
            return squares + ROUNDED * ceiling, products
        left = rows - (sums / d).unsqueeze(-1)
        left = left - normal * (left * normal).mean(-1, keepdim=True)
        return (energies(left) * factors).sum(1), products

    def _never_below_rounding(self, norms: Tensor) -> Tensor:
        """Norms of which none is smaller than what the arithmetic can resolve.

        Terms that cancel, among themselves or in the part that standardisation takes away, leave their rounding errors,
        which reach the sum.
        """
        length, d, p = self.used.sizes
        by_group = self.factor.view(1, -1, 1, p)
        lost, least = [], []
        for start, stop in unit_chunks(self.num_units, length * d * self.used.groups):
            a, b = self.used.columns(start, stop)
            underflow, terms = rounding((energies(a), energies(b * by_group)), self.used.sizes)
            lost.append(underflow)
            least.append(terms * resolution(length))
        return torch.maximum(norms + torch.cat(lost), torch.cat(least))


class StandardisedGain(Contribution):
    """The gain of a standardised weight: the products of gradients and standardised weight, which the weight's norms need too.

    Args:
        weight: the weight's contribution.
        scale: what gain and standardised weight are multiplied with.
        shape: the gain's shape.
    """

    def __init__(self, weight: StandardisedWeight, scale: float, shape: torch.Size) -> None:
        self.weight, self.scale = weight, scale
        self.num_units, self.shape = weight.num_units, shape

    @override
    def real(self) -> PerUnit:
        return PerUnit((self.scale * self.weight.products()).view(-1, *self.shape))

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.real().per_unit(start, stop)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return self.real().weighted_sum(weights)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return self.real().keep(mask)


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
    found: dict[str, Contribution] = {}
    if call.trainable & {"weight", "gain"}:
        by_unit, grad = units.by_unit(geometry.pad(call.x), call.name), units.by_unit(call.grad, call.name)
        used = StandardisedWeight(ConvWeight(by_unit, grad, weight.shape, geometry), normal, k * inverse)
        found = {"weight": used} if "weight" in call.trainable else {}
        if gain is not None and "gain" in call.trainable:
            found["gain"] = StandardisedGain(used, scale, gain.shape)
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.by_unit(call.grad.flatten(2).sum(2), call.name).sum(1))
    return found

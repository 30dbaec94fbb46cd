"""How the output of layers that are linear in their parameters moves with them: by the layer applied to the displacement.

Such a layer's own output is kept and the displacement's part is added, so that the rule of the layer, which knows its
input and its output gradient alone, holds in the second pass as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.gradients.ascent.directions import Directions
from lightning_dp.gradients.rules import LayerRule
from lightning_dp.gradients.rules.conv import ConvGeometry, conv_rule
from lightning_dp.gradients.rules.linear import embedding_rule, linear_rule, transposed_linear_rule
from lightning_dp.gradients.rules.norm import channel_norm_rule, shape_norm_rule

__all__ = ("LINEAR_LAYERS", "Moved")


@dataclass(frozen=True)
class Moved:
    """A call of a layer in the second pass.

    Attributes:
        module: the layer.
        x: its input by unit ``(U, K, ...)``, with its graph, floating-point inputs in the parameters' precision.
        trainable: the parameters that take part by their names in the module.
        directions: how far each unit's are moved.
    """

    module: nn.Module
    x: Tensor
    trainable: dict[str, nn.Parameter]
    directions: Directions

    def full(self, name: str) -> Tensor | None:
        """The displacement of a parameter ``(U, *shape)``; ``None`` where it takes no part or is not moved."""
        return self.directions.full(self.trainable[name]) if name in self.trainable else None

    def unscaled(self, name: str) -> Tensor | None:
        """The gradient along which it lies."""
        return self.directions.unscaled(self.trainable[name]) if name in self.trainable else None

    def applied(self, name: str, x: Tensor) -> Tensor | None:
        """Inputs ``(U, K, d)`` times the displacement of a weight ``(p, d)``."""
        return self.directions.applied(self.trainable[name], x) if name in self.trainable else None


Change = Callable[[Moved], Tensor | None]
"""From a call to what is added to the layer's output, by unit ``(U, K, ...)``; ``None`` for nothing."""


def _linear(call: Moved) -> Tensor | None:
    x, bias = call.x, call.full("bias")
    weight = call.applied("weight", x.flatten(1, -2))
    return _sum(weight, None if bias is None else bias.unsqueeze(1), (*x.shape[:-1], -1))


def _transposed_linear(call: Moved) -> Tensor | None:
    x, weight, bias = call.x, call.full("weight"), call.full("bias")
    product = None if weight is None else x.flatten(1, -2) @ weight
    return _sum(product, None if bias is None else bias.unsqueeze(1), (*x.shape[:-1], -1))


def _sum(product: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if product is None:
        if bias is None:
            return None
        return bias.view(bias.shape[0], *[1] * (len(shape) - 2), bias.shape[-1])
    return (product if bias is None else product + bias).reshape(*shape[:-1], product.shape[-1])


def _embedding(call: Moved) -> Tensor | None:
    index = call.x.flatten(1)
    rows = call.directions.looked_up(call.trainable["weight"], index)
    return None if rows is None else rows.reshape(*call.x.shape, rows.shape[-1])


def _conv(call: Moved) -> Tensor | None:
    module, weight, bias = call.module, call.unscaled("weight"), call.full("bias")
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    channels = [1] * len(module.kernel_size)
    shift = None if bias is None else bias.view(bias.shape[0], 1, -1, *channels)
    if weight is None:
        return shift
    geometry, (units, fold) = ConvGeometry(module), call.x.shape[:2]
    x = geometry.pad(call.x.flatten(0, 1))
    x = x.view(units, fold, *x.shape[1:])
    # All units at once: one row, the units' channels side by side in groups of their own.
    x = x.transpose(0, 1).flatten(1, 2)
    functions: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    out: Tensor = functions[len(channels)](
        x, weight.flatten(0, 1), None, geometry.stride, geometry.padding, geometry.dilation, units * geometry.groups
    )
    out = call.directions.scaled(out.view(fold, units, -1, *out.shape[2:]).transpose(0, 1))
    return out if shift is None else out + shift


def _shape_norm(call: Moved) -> Tensor | None:
    module, weight, bias = call.module, call.full("weight"), call.full("bias")
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    shape = list(module.normalized_shape)
    places = [1] * (call.x.dim() - 1 - len(shape))
    if weight is None:
        return None if bias is None else bias.view(-1, *places, *shape)
    if isinstance(module, nn.LayerNorm):
        normal = F.layer_norm(call.x, shape, None, None, module.eps)
    else:
        normal = F.rms_norm(call.x, shape, None, module.eps)
    moved = normal * weight.view(-1, *places, *shape)
    return moved if bias is None else moved + bias.view(-1, *places, *shape)


def _channel_norm(call: Moved) -> Tensor | None:
    module, x, weight, bias = call.module, call.x, call.full("weight"), call.full("bias")
    shape = (x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3))
    if weight is None:
        return None if bias is None else bias.view(shape)
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[2]
    assert isinstance(groups, int)
    eps = module.eps
    assert isinstance(eps, float)
    normal = F.group_norm(x.flatten(0, 1), groups, None, None, eps).view(x.shape)
    moved = normal * weight.view(shape)
    return moved if bias is None else moved + bias.view(shape)


LINEAR_LAYERS: dict[LayerRule, Change] = {
    linear_rule: _linear,
    transposed_linear_rule: _transposed_linear,
    embedding_rule: _embedding,
    conv_rule: _conv,
    shape_norm_rule: _shape_norm,
    channel_norm_rule: _channel_norm,
}
"""By the rule that the layer has: it applies to the same computations."""

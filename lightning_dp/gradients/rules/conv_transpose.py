"""Transposed convolutions in one to three dimensions.

``conv_transpose`` is the input gradient of a convolution, so its weight gradient is that convolution's weight gradient
with the roles of input and output gradient exchanged: the convolution runs from the output gradient to the input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("conv_transpose_rule",)

ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class TransposedGeometry(ConvGeometry):
    """The convolution from the output's positions back to the input's, on output gradients padded to fit exactly."""

    def __init__(self, module: ConvTranspose, in_size: tuple[int, ...]) -> None:
        super().__init__(module)  # type: ignore[arg-type]
        self._cropped = [int(p) for p in module.padding]
        self.padding = [0] * len(self.kernel)
        self.in_size = in_size

    @override
    def pad(self, x: Tensor) -> Tensor:
        """Puts back what ``padding`` cropped. On the far side ``output_padding`` counts against it, and may exceed it."""
        pads: list[int] = []
        sizes = zip(self.in_size, x.shape[2:], self.kernel, self.stride, self.dilation, self._cropped, strict=True)
        for n, out, k, s, d, before in reversed(list(sizes)):
            pads += [before, (n - 1) * s + (k - 1) * d + 1 - before - out]
        return F.pad(x, pads) if any(pads) else x


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, complex_too=True)
def conv_transpose_rule(call: LayerCall) -> dict[str, Contribution]:
    """A convolution's rule with input and output gradient exchanged; the bias as in a convolution."""
    module, units, x, grad = call.module, call.units, call.x, call.grad
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    call.refuse_without_batch(x.dim() == len(module.kernel_size) + 2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        geometry = TransposedGeometry(module, tuple(x.shape[2:]))
        found["weight"] = ConvWeight(
            units.by_unit(geometry.pad(grad), call.name),
            units.by_unit(x.conj_physical(), call.name),
            module.weight.shape,
            geometry,
        )
    if "bias" in call.trainable:
        found["bias"] = PerUnit(units.summed(grad.flatten(2).sum(2), call.name))
    return found

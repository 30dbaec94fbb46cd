"""Convolutions with standardised weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = ("StandardisedConv2d",)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight is standardised over each output channel's inputs and then scaled by a learned gain.

    ``w_hat = gain / sqrt(fan_in) * (w - mean(w)) / sqrt(var(w) + eps)`` for each output channel (Qiao et al. 2019, arXiv
    1903.10520; scaled as in Brock et al. 2021, arXiv 2101.08692, eq. 3). It normalises parameters, not activations, so it
    keeps samples apart. The engine has a rule for it that is exact: gradients are those of ``w`` and of the gain.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: side of the kernel.
        stride: step of the kernel.
        padding: zeros around the image.
        bias: whether a bias is added.
        eps: added to the variance.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, H', W')``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.eps = eps
        self.scale = self.weight[0].numel() ** -0.5
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))

    @override
    def forward(self, input: Tensor) -> Tensor:
        """The convolution with the standardised weight."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = self.gain * self.scale * (self.weight - mean) * torch.rsqrt(variance + self.eps)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

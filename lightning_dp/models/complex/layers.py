"""Linear and convolutional layers over the complex numbers, started at random in all directions of the plane."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.models.complex.whitening import whitened

__all__ = ("ComplexConv1d", "ComplexConv2d", "ComplexLinear", "StandardisedComplexConv2d")


class ComplexLinear(nn.Linear):
    """``y = z W^T`` (``+ b``): :class:`torch.nn.Linear` over complex64.

    Weights start as circular normal numbers of mean square ``1 / in_features``, so that outputs have the mean square of the
    inputs; PyTorch's own initialisation of complex layers draws real and imaginary parts like real weights, which doubles it.

    Args:
        in_features: complex inputs.
        out_features: complex outputs.
        bias: whether there is a bias, zero at the start; where a norm follows it is redundant.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias, dtype=torch.complex64)

    @override
    def reset_parameters(self) -> None:
        """Draws new weights."""
        _start(self.weight, self.bias)


class _ComplexConv:
    """The initialisation that the convolutions share."""

    weight: Tensor
    bias: Tensor | None

    def reset_parameters(self) -> None:
        """Draws new weights."""
        _start(self.weight, self.bias)


class ComplexConv1d(_ComplexConv, nn.Conv1d):
    """:class:`torch.nn.Conv1d` over complex64, started like :class:`ComplexLinear`; arguments as there.

    With ``W = A + iB`` and ``z = a + ib`` it is ``(A a - B b) + i (A b + B a)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        options: dict[str, Any] = {"dtype": torch.complex64}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)


class ComplexConv2d(_ComplexConv, nn.Conv2d):
    """:class:`torch.nn.Conv2d` over complex64; see :class:`ComplexConv1d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        options: dict[str, Any] = {"dtype": torch.complex64}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)


class StandardisedComplexConv2d(ComplexConv2d):
    """A complex convolution whose weight is whitened per output channel before use.

    Weight standardisation (Qiao et al. 2019, arXiv 1903.10520) over the complex numbers: each output channel's weights get
    mean 0, and parts of unit covariance divided by the fan-in. The gradient engine differentiates it per unit as it is, by the
    verified fallback: the norm is that of the stored weight's gradient, and exact.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the whitened weight."""
        fan_in = self.weight[0].numel()
        weight = whitened(self.weight.flatten(1), 1e-5 / fan_in).view_as(self.weight) / math.sqrt(2 * fan_in)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _start(weight: Tensor, bias: Tensor | None) -> None:
    # randn of a complex type has mean square 1, half of it on each part.
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight) / math.sqrt(weight[0].numel()))
        if bias is not None:
            bias.zero_()

"""Normalisation of complex activations by whitening, within one sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.complex.whitening import apply_matrix, whitened

__all__ = ("ComplexGroupNorm", "ComplexLayerNorm", "ComplexNorm")


class ComplexNorm(nn.Module):
    """What the norms share: ``y = weight xhat + bias``, with xhat whitened, a real 2 x 2 ``weight`` and a complex ``bias``.

    Dividing by one standard deviation would leave real and imaginary parts correlated and of different size; the inverse
    root of their covariance does not (Trabelsi et al. 2018, arXiv 1705.09792, section 3.5). At the start
    ``weight = I / sqrt(2)``, so that outputs have mean square 1. Statistics are of one sample, so that nothing couples the
    batch and nothing private is stored.

    Args:
        shape: shape of what has a weight of its own.
        eps: added to both variances.
        affine: whether there are ``weight`` ``(*shape, 2, 2)``, real, and ``bias`` ``(*shape)``, complex.
    """

    def __init__(self, shape: Sequence[int], eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.eye(2).div(2**0.5).repeat(*shape, 1, 1)) if affine else None
        self.bias = nn.Parameter(torch.zeros(*shape, dtype=torch.complex64)) if affine else None

    @abstractmethod
    def normalised(self, z: Tensor) -> Tensor:
        """The whitened input, of its shape."""

    @abstractmethod
    def positions(self, tensor: Tensor) -> Tensor:
        """From the input's shape to ``(N, P, *shape)``: positions that share a weight along axis 1."""

    @abstractmethod
    def aligned(self, parameter: Tensor, dim: int) -> Tensor:
        """``(*shape, ...)`` so that its first axes broadcast against an input of ``dim`` axes."""

    def forward(self, z: Tensor) -> Tensor:
        """Normalise and transform."""
        if not z.is_complex():
            raise PrivacyConfigError(
                f"{type(self).__name__} got {z.dtype}: it whitens real and imaginary parts. Give it complex numbers "
                "(torch.complex, torch.view_as_complex), or use GroupNorm or LayerNorm."
            )
        z = self.normalised(z)
        if self.weight is None or self.bias is None:
            return z
        return apply_matrix(self.aligned(self.weight, z.dim()), z) + self.aligned(self.bias, z.dim())


class ComplexGroupNorm(ComplexNorm):
    """Group normalisation by whitening over each group of channels of a sample.

    Args:
        num_groups: groups of channels; 1 whitens over all.
        num_channels: channels, a multiple of ``num_groups``.
        eps: added to both variances.
        affine: see :class:`ComplexNorm`.

    Shape:
        Complex ``(N, C, *)`` to the same.

    Raises:
        PrivacyConfigError: if the groups do not divide the channels, or the input is real.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__((num_channels,), eps, affine)
        if num_groups < 1 or num_channels % num_groups:
            raise PrivacyConfigError(
                f"num_groups={num_groups} does not divide num_channels={num_channels}: choose a divisor of it."
            )
        self.num_groups, self.num_channels = num_groups, num_channels

    @override
    def normalised(self, z: Tensor) -> Tensor:
        if z.dim() < 2 or z.shape[1] != self.num_channels:
            raise PrivacyConfigError(
                f"ComplexGroupNorm({self.num_groups}, {self.num_channels}) got an input of shape {tuple(z.shape)}: axis 1 "
                "must hold the channels."
            )
        return whitened(z.reshape(z.shape[0], self.num_groups, -1), self.eps).view(z.shape)

    @override
    def positions(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(-1).flatten(2).transpose(1, 2)

    @override
    def aligned(self, parameter: Tensor, dim: int) -> Tensor:
        return parameter.view(self.num_channels, *[1] * (dim - 2), *parameter.shape[1:])

    @override
    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class ComplexLayerNorm(ComplexNorm):
    """Layer normalisation by whitening over the trailing axes.

    Args:
        normalized_shape: sizes of the trailing axes, or of the last one.
        eps: added to both variances.
        affine: see :class:`ComplexNorm`.

    Shape:
        Complex ``(N, *, *normalized_shape)`` to the same.

    Raises:
        PrivacyConfigError: if the input is real, or its trailing axes are of other sizes.
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, affine: bool = True) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        super().__init__(shape, eps, affine)
        self.normalized_shape = shape

    @override
    def normalised(self, z: Tensor) -> Tensor:
        axes = len(self.normalized_shape)
        if z.dim() <= axes or tuple(z.shape[-axes:]) != self.normalized_shape:
            raise PrivacyConfigError(
                f"ComplexLayerNorm({self.normalized_shape}) got an input of shape {tuple(z.shape)}: its last axes must be "
                "of those sizes, behind the batch axis."
            )
        return whitened(z.flatten(-axes), self.eps).view(z.shape)

    @override
    def positions(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(tensor.shape[0], -1, *self.normalized_shape)

    @override
    def aligned(self, parameter: Tensor, dim: int) -> Tensor:
        return parameter

    @override
    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.normalized_shape}, eps={self.eps}"

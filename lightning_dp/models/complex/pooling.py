"""Pooling of complex numbers, and the ways from them to real ones. A largest complex number does not exist."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError

__all__ = ("ComplexAvgPool", "ConjugatePool", "Magnitude", "RealPart")


class _Pool(nn.Module):
    """Windows of ``size`` x ``size`` pixels without overlap; 0: one window over the whole map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 0:
            raise PrivacyConfigError(
                f"size={size}: give the side of the windows, or 0 for one window over the whole map."
            )
        self.size = size

    def _checked(self, z: Tensor) -> Tensor:
        if z.dim() != 4 or not z.is_complex():
            raise PrivacyConfigError(
                f"{type(self).__name__} got {z.dtype} of shape {tuple(z.shape)}: it pools complex images (N, C, H, W)."
            )
        return z

    @override
    def extra_repr(self) -> str:
        """The size of the windows."""
        return f"size={self.size}"


class ComplexAvgPool(_Pool):
    """Mean over windows of ``size`` x ``size`` pixels without overlap; rows and columns that fill no window are left out.

    Args:
        size: side of the windows; 0: one window over the whole map.

    Shape:
        Complex ``(N, C, H, W)`` to ``(N, C, H // size, W // size)``, or ``(N, C, 1, 1)``.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__(size)

    def forward(self, z: Tensor) -> Tensor:
        """Pool."""
        z = self._checked(z)
        if not self.size:
            return z.mean((2, 3), keepdim=True)
        return torch.complex(F.avg_pool2d(z.real, self.size), F.avg_pool2d(z.imag, self.size))


class ConjugatePool(_Pool):
    """``(P(a) - P(b)) + i (P(a) + P(b))`` of ``z = a + ib``, with P the maximum over windows without overlap.

    Named after :class:`ConjugateMish`, which treats the two parts alike. **Our reading**: the authors of complex-valued
    DP-SGD (arXiv 2110.03478) name such a pooling, and its definition was not at hand.

    Args:
        size: side of the windows; 0: one window over the whole map.

    Shape:
        As :class:`ComplexAvgPool`.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__(size)

    def forward(self, z: Tensor) -> Tensor:
        """Pool."""
        z = self._checked(z)
        size = self.size or (z.shape[2], z.shape[3])
        real, imag = F.max_pool2d(z.real, size), F.max_pool2d(z.imag, size)
        return torch.complex(real - imag, real + imag)


class Magnitude(nn.Module):
    """``|z|``, with a derivative at 0 as well: ``sqrt(a^2 + b^2 + eps)``.

    Args:
        eps: positive.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, z: Tensor) -> Tensor:
        """Real, of the shape of ``z``."""
        return (z.real.square() + z.imag.square() + self.eps).sqrt()


class RealPart(nn.Module):
    """``Re z``."""

    def forward(self, z: Tensor) -> Tensor:
        """Real, of the shape of ``z``."""
        return z.real

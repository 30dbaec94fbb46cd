"""Activations of complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

__all__ = ("Cardioid", "ConjugateMish", "IGaussian", "SeparableMish")

TINY = 1e-12  # magnitudes below it count as it: directions are undefined at 0


class Cardioid(nn.Module):
    """``(1 + cos arg z) z / 2``: ReLU where z is real, and smooth in between (Virtue et al. 2017, arXiv 1707.00070).

    It keeps the phase and is homogeneous of degree one. It does not commute with a change of phase: the factor depends on it.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Apply to each element."""
        return 0.5 * (1 + z.real / z.abs().clamp_min(TINY)) * z


class SeparableMish(nn.Module):
    """``mish(a) + i mish(b)`` of ``z = a + ib``."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply to each element."""
        return _of_parts(F.mish, z)


class ConjugateMish(nn.Module):
    """``(mish(a) - mish(b)) + i (mish(a) + mish(b))``: separable, turned by 45 degrees, so that parts mix."""

    def forward(self, z: Tensor) -> Tensor:
        """Apply to each element."""
        return _of_parts(F.mish, z) * (1 + 1j)


class IGaussian(nn.Module):
    """``(1 - exp(-|z|^2 / (2 width^2))) exp(i arg z)``: the phase kept, the magnitude bounded by 1.

    It commutes with every change of phase. Bounded activations keep per-sample gradients from growing in training.

    Args:
        width: magnitudes well above it become 1.
    """

    def __init__(self, width: float = 0.4) -> None:
        super().__init__()
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        """Apply to each element."""
        magnitude = z.abs()
        # The ratio is about |z| / (2 width^2) at small magnitudes.
        return z * (-torch.expm1(-0.5 * (magnitude / self.width).square()) / magnitude.clamp_min(TINY))

    @override
    def extra_repr(self) -> str:
        """The width."""
        return f"width={self.width}"


def _of_parts(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    # On the parts as they lie in memory: on strided ones the library's mish is ten times slower (measured).
    return torch.view_as_complex(function(torch.view_as_real(z.resolve_conj())))

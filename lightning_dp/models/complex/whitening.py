"""Whitening of complex numbers: their real and imaginary parts made uncorrelated and of equal variance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ("apply_matrix", "whitened", "whitening_matrix")


def whitening_matrix(u: Tensor, v: Tensor, c: Tensor, eps: float) -> Tensor:
    """The inverse root of the 2 x 2 covariance ``[[u + eps, c], [c, v + eps]]``, in closed form.

    With ``d`` the root of the determinant and ``t = d sqrt(u + v + 2 d)`` it is ``[[v + d, -c], [-c, u + d]] / t`` (``eps``
    being added to u and v first); Trabelsi et al. 2018, arXiv 1705.09792, section 3.5.

    Args:
        u: variances of the real parts, any shape ``(...)``.
        v: of the imaginary parts.
        c: their covariances, ``c^2 <= u v``.
        eps: positive; what keeps numbers on a line (or equal ones) from being blown up without bound.

    Returns:
        ``(..., 2, 2)``, symmetric.
    """
    # (u + eps)(v + eps) - c^2, rearranged: for numbers on a line u v and c^2 agree to all digits, and rounding could leave
    # a negative difference beside which eps^2 vanishes.
    determinant = (u * v - c * c).clamp_min(0.0) + eps * (u + v) + eps * eps
    u, v, d = u + eps, v + eps, determinant.sqrt()
    t = d * (u + v + 2 * d).sqrt()
    rows = torch.stack([v + d, -c], -1), torch.stack([-c, u + d], -1)
    return torch.stack(rows, -2) / t[..., None, None]


def apply_matrix(matrix: Tensor, z: Tensor) -> Tensor:
    """A real 2 x 2 matrix applied to the parts of complex numbers.

    Args:
        matrix: ``(..., 2, 2)``.
        z: complex, of a shape that broadcasts with ``(...)``.
    """
    # Any real map of the plane is z -> alpha z + beta conj(z).
    sums, differences = matrix[..., 0, 0] + matrix[..., 1, 1], matrix[..., 0, 0] - matrix[..., 1, 1]
    alpha = torch.complex(sums, matrix[..., 1, 0] - matrix[..., 0, 1]) / 2
    beta = torch.complex(differences, matrix[..., 1, 0] + matrix[..., 0, 1]) / 2
    return alpha * z + beta * z.conj()


def whitened(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Complex numbers ``(..., M)`` with mean 0 and, up to ``eps``, unit covariance of their parts over the last axis."""
    centred = z - z.mean(-1, keepdim=True)
    real, imag = centred.real, centred.imag
    moments = (real.square().mean(-1), imag.square().mean(-1), (real * imag).mean(-1))
    return apply_matrix(whitening_matrix(*moments, eps).unsqueeze(-3), centred)

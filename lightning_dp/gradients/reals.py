"""Complex numbers as pairs of real ones: how a network over C is clipped and noised as the network over R that it is.

C^n is R^(2n) with the same distances, so a complex parameter is one of twice as many real coordinates, and everything that
matters for privacy (norms, bounds, sums, noise, what crosses ranks) is done on those. Layer rules may be complex; what the
engine keeps never is, so that no later line can forget an imaginary part.

PyTorch's convention: for a real loss L and a complex ``z = a + ib``, ``.grad`` is ``dL/da + i dL/db``, twice the derivative
with respect to conj(z). Its absolute value is the norm over the two real coordinates; and the gradient of the weight in
``y = W x`` is the outer product of the output gradient with conj(x).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ("as_real", "carries_gradient", "in_precision", "like_parameter", "real_dtype", "real_rows", "real_shape")


def carries_gradient(tensor: Tensor) -> bool:
    """Whether gradients can flow through a tensor: it is real or complex floating-point."""
    return tensor.is_floating_point() or tensor.is_complex()


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the real parts: float32 for complex64; real types are their own."""
    return dtype.to_real() if dtype.is_complex else dtype


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor with its parts in the precision of ``dtype``: complex stays complex, integers stay as they are."""
    if tensor.dtype == dtype:
        return tensor
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(real_dtype(dtype)) if tensor.is_floating_point() else tensor


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor ``(...)`` as its parts ``(..., 2)``; a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter's real coordinates."""
    return torch.Size((*parameter.shape, 2)) if parameter.is_complex() else parameter.shape


def like_parameter(coordinates: Tensor, parameter: Tensor) -> Tensor:
    """Real coordinates ``(*real_shape(parameter))`` as what the parameter is; the same memory."""
    return torch.view_as_complex(coordinates) if parameter.is_complex() else coordinates


def real_rows(a: Tensor, b: Tensor, position: int, feature: int) -> tuple[Tensor, Tensor]:
    """Two factors over R whose products, summed over positions, are the parts of ``sum_t b[t] a[t]^T`` over C.

    With ``b = p + iq``: ``b a^T = p a^T + q (ia)^T``. So position t becomes two, the real factors p and q beside the parts of
    a and of ia, and the parts lie behind a's features as :func:`torch.view_as_real` puts them: the sum over positions has the
    elements of the complex gradient's real view, in its order, if the features are its last axis.

    Args:
        a: complex, its features along the axis ``feature``.
        b: complex.
        position: the axis along which both have positions (or rows of them).
        feature: the axis of ``a`` to be doubled.

    Returns:
        ``a`` with twice the positions and twice the features, each feature's two parts side by side; and ``b`` with
        twice the positions.
    """
    a, b = (t if t.is_complex() else t.to(t.dtype.to_complex()) for t in (a, b))
    feature %= a.dim()
    parts = as_real(torch.cat([a, a * 1j], position))
    doubled = parts.movedim(-1, feature + 1).flatten(feature, feature + 1)
    return doubled, torch.cat([b.real, b.imag], position)

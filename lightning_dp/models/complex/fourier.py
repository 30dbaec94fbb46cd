"""Fixed layers for the front of a complex network: from k-space to an image, and away with gain, coils and phases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError

__all__ = ("InverseFourier2d", "LocalContrast2d", "UnitPower")

TINY = 1e-20  # smaller numbers count as it: an empty scan stays empty
INSIDE = 0.99  # of a window that lies within the object, up to rounding


class InverseFourier2d(nn.Module):
    """The centred, unitary inverse Fourier transform over the last two axes: from k-space to a complex image.

    Local structure of an image is spread over all of k-space, and a convolution over k-space only multiplies the image by
    something, so that a convolutional network sees little in raw k-space. This layer is linear, has no parameters and
    sees one sample at a time: it is public and costs no privacy. With ``norm="ortho"`` it keeps all distances.

    ``image = fftshift(ifft2(ifftshift(z), norm="ortho"))``: the zero frequency is in the middle of ``z`` (``size // 2``), and
    positions count from the middle of the image, as scanners store them.

    Shape:
        Complex ``(*, H, W)`` to the same.

    Raises:
        PrivacyConfigError: for a real input, or one of fewer than two axes.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Transform each sample and channel."""
        if not z.is_complex() or z.dim() < 2:
            raise PrivacyConfigError(
                f"InverseFourier2d got {z.dtype} of shape {tuple(z.shape)}: it takes complex k-space (..., H, W). Combine "
                "real and imaginary parts first (torch.complex, torch.view_as_complex)."
            )
        axes = (-2, -1)
        image: Tensor = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(z, axes), norm="ortho"), axes)
        return image


class UnitPower(nn.Module):
    """Each sample divided by the root of its mean square, over all its channels: receiver gain does not pass.

    One positive factor for all of a sample, so that phases and the relation of the channels stay. Nothing is learnt or stored.

    Shape:
        Complex or real ``(N, *)`` to the same.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Scale each sample."""
        power = z.abs().square().flatten(1).mean(1)
        return z * power.clamp_min(TINY).rsqrt().view(-1, *[1] * (z.dim() - 1))


class LocalContrast2d(nn.Module):
    """How far each pixel of a complex image is from its neighbourhood, in the neighbourhood's own units; over all coils.

    Receiver gain, coil sensitivities and smooth phases multiply an image by something that varies slowly. With ``l_c`` the
    mean of coil c's image ``z_c`` over a window of ``size`` x ``size`` pixels within the object, and r the mean of the root
    of the sum of squares over coils, the output is

        ``d = sum_c z_c conj(l_c) / (sqrt(sum_c |l_c|^2) r) - 1``:

    coils are combined as a matched filter does, with sensitivities estimated from the image itself; phases relative to the
    neighbourhood's stay, in the imaginary part. It is zero outside of the object (pixels whose root of the sum of squares is
    below ``support`` times its root mean square), and the magnitude is cut at ``ceiling``. A second channel keeps only the
    pixels whose whole window lies within the object: it has no edges in it.

    Both are divided by their pixels' share of the image, so that a mean over the image is one over the object, and scaled to
    deviations of about 1. No parameters, one sample at a time: public, and costs no privacy.

    Args:
        size: side of the windows, odd.
        support: what counts as object.
        ceiling: the largest contrast.
        gain: what contrasts are multiplied by.

    Shape:
        Complex ``(N, coils, H, W)`` to ``(N, 2, H, W)``.

    Raises:
        PrivacyConfigError: for a window that has no middle, or an input that is no complex image.
    """

    def __init__(self, size: int = 5, support: float = 0.28, ceiling: float = 0.6, gain: float = 1.5) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise PrivacyConfigError(f"size={size} must be odd and positive: a window around a pixel.")
        self.size, self.support, self.ceiling, self.gain = size, support, ceiling, gain

    def forward(self, z: Tensor) -> Tensor:
        """The two contrast channels."""
        contrast, weights = self.measured(z)
        share = weights.mean((2, 3), keepdim=True).clamp_min(0.08)  # a few pixels shall not count for a whole object
        return contrast * (self.gain * weights / share)

    def measured(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The contrast ``(N, 1, H, W)`` before it is weighted, and which pixels count in either channel ``(N, 2, H, W)``."""
        if not z.is_complex() or z.dim() != 4:
            raise PrivacyConfigError(
                f"LocalContrast2d got {z.dtype} of shape {tuple(z.shape)}: it takes complex images (N, coils, H, W)."
            )
        magnitude = z.abs().square().sum(1, keepdim=True).sqrt()
        floor = self.support * magnitude.square().mean((2, 3), keepdim=True).sqrt().clamp_min(TINY**0.5)
        object_ = (magnitude > floor).to(magnitude)
        covered = self._mean(object_)
        reference = torch.maximum(self._mean(magnitude * object_) / covered.clamp_min(1e-3), floor)
        local = torch.complex(self._mean(z.real * object_), self._mean(z.imag * object_))
        size = local.abs().square().sum(1, keepdim=True).sqrt().clamp_min(TINY**0.5)
        contrast = (z * local.conj()).sum(1, keepdim=True) / (size * reference) - 1
        contrast = contrast * (self.ceiling / contrast.abs().clamp_min(self.ceiling))
        inner = (covered > INSIDE).to(magnitude)
        return contrast, torch.cat([object_, inner], 1)

    def _mean(self, x: Tensor) -> Tensor:
        k = self.size
        rows = F.avg_pool2d(x, (k, 1), 1, (k // 2, 0))
        return F.avg_pool2d(rows, (1, k), 1, (0, k // 2))

    @override
    def extra_repr(self) -> str:
        """The settings."""
        return f"size={self.size}, support={self.support}, ceiling={self.ceiling}, gain={self.gain}"

"""Random test objects for setting up networks before they see any data: an ellipse of three random tissues, in k-space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("random_phantoms",)


def random_phantoms(n: int, size: int, coils: int, seed: int = 0) -> Tensor:
    """k-space of ellipses filled with random patches of three tissues of random brightness.

    They are made of random numbers alone: no anatomy, no signal equation, no data. What is computed from them is public.

    Args:
        n: how many.
        size: side of image and k-space, at least 8.
        coils: receive coils, each with a phase of its own and the same sensitivity everywhere.
        seed: of everything; the process's own random stream is not touched.

    Returns:
        complex64 ``(n, coils, size, size)``, the zero frequency in the middle.

    Raises:
        PrivacyConfigError: for a size below 8.
    """
    if size < 8:
        raise PrivacyConfigError(f"size={size}: a phantom needs at least 8 x 8 pixels.")
    generator = torch.Generator().manual_seed(seed)

    def smooth(coarse: int) -> Tensor:
        numbers = torch.randn(n, 1, coarse, coarse, generator=generator)
        return F.interpolate(numbers, size=(size, size), mode="bicubic")

    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    radii = 0.5 + 0.25 * torch.rand(n, 2, 1, 1, generator=generator)
    inside = ((x / radii[:, :1]).square() + (y / radii[:, 1:]).square() < 1).float()
    third = (smooth(size // 3) > 0.9).float()  # a fifth of the object, of any brightness
    first = (smooth(size // 4) > 0).float() * (1 - third)
    spread = torch.tensor([0.15, 0.15, 0.7])
    brightness = torch.exp(torch.randn(n, 3, generator=generator) * spread)[..., None, None]
    tissues = torch.cat([first, 1 - first - third, third], 1)
    image = F.avg_pool2d(inside * (tissues * brightness).sum(1, keepdim=True), 3, 1, 1)
    phase = torch.polar(torch.ones(n, coils, 1, 1), 6.2832 * torch.rand(n, coils, 1, 1, generator=generator))
    noise = torch.view_as_complex(0.04 * torch.randn(n, coils, size, size, 2, generator=generator))
    axes = (-2, -1)
    found: Tensor = torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(image * phase + noise, axes), norm="ortho"), axes
    )
    return found

"""What a complex image consists of, without where: soft histograms of its local contrast, and a small network on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.complex.activations import Cardioid
from lightning_dp.models.complex.fourier import InverseFourier2d, LocalContrast2d, UnitPower
from lightning_dp.models.complex.layers import ComplexLinear
from lightning_dp.models.complex.phantoms import random_phantoms
from lightning_dp.models.complex.pooling import RealPart

__all__ = ("ComplexMLP", "ContrastHistogram2d")

PHANTOMS = 256
AT_ONCE = 64  # scans
TURN = 5.0  # radians of phase for an imaginary contrast of 1


class ContrastHistogram2d(nn.Module):
    """Raw k-space to complex soft histograms of the image's local contrast: a fixed function of each scan.

    After unit power and the inverse Fourier transform, :class:`~lightning_dp.models.LocalContrast2d` compares every pixel with
    its neighbourhood, over windows of several sides. Bin k of a window is the mean over the object of
    ``exp(-(Re d - c_k)^2 / (2 s^2)) exp(i 5 Im d)``: how often this contrast occurs, turned by the phase relative to the
    neighbourhood. Bins are centred and scaled by their mean and root mean square over random ellipses
    (:func:`~lightning_dp.models.complex.phantoms.random_phantoms`), which know of no data.

    No parameters, and no sample sees another: like scattering features it costs no privacy, and may be computed once.

    Args:
        coils: receive coils.
        size: side of the k-space.
        windows: sides of the neighbourhoods, odd.
        bins: centres from the lowest to the highest contrast, for each window.

    Shape:
        complex64 ``(N, coils, size, size)`` to complex64 ``(N, features)``, ``features = 2 * bins * len(windows)``.

    Raises:
        PrivacyConfigError: for fewer than two bins or no window, or an input of another shape.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, coils: int = 2, size: int = 64, windows: tuple[int, ...] = (5, 9, 15), bins: int = 24) -> None:
        super().__init__()
        if bins < 2 or not windows:
            raise PrivacyConfigError(f"bins={bins}, windows={windows}: give at least two bins and one window.")
        self.coils, self.size, self.bins = coils, size, bins
        self.image = nn.Sequential(UnitPower(), InverseFourier2d())
        self.contrasts = nn.ModuleList(LocalContrast2d(window) for window in windows)
        self.features = 2 * bins * len(windows)
        with torch.no_grad():
            found = self._histograms(random_phantoms(PHANTOMS, size, coils))
        centre = found.mean(0)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", (found - centre).abs().square().mean(0).sqrt().clamp_min(1e-3))

    def forward(self, z: Tensor) -> Tensor:
        """The centred and scaled bins."""
        if not z.is_complex() or z.shape[1:] != (self.coils, self.size, self.size):
            raise PrivacyConfigError(
                f"ContrastHistogram2d(coils={self.coils}, size={self.size}) got {z.dtype} of shape {tuple(z.shape)}: it takes "
                "complex k-space (N, coils, size, size)."
            )
        return torch.cat([(self._histograms(part) - self.centre) / self.spread for part in torch.split(z, AT_ONCE)])

    def _histograms(self, z: Tensor) -> Tensor:
        image, found = self.image(z), []
        for layer in self.contrasts:
            assert isinstance(layer, LocalContrast2d)
            contrast, weights = layer.measured(image)
            centres = torch.linspace(-layer.ceiling, layer.ceiling, self.bins, device=z.device)
            width = 2 * layer.ceiling / (self.bins - 1)
            near = torch.exp(-0.5 * ((contrast.real - centres.view(1, -1, 1, 1)) / width).square())
            turned = near * torch.polar(torch.ones_like(contrast.real), TURN * contrast.imag)
            weights = weights.flatten(2) / weights.sum((2, 3)).clamp_min(1.0).unsqueeze(-1)
            found.append((turned.flatten(2) @ weights.mT.to(turned.dtype)).flatten(1))
        return torch.cat(found, 1)


class ComplexMLP(nn.Sequential):
    """Two complex linear layers with cardioids between them; the real parts are the logits.

    Args:
        in_features: complex features.
        hidden: complex units.
        num_classes: outputs.

    Shape:
        complex64 ``(N, in_features)`` to float32 ``(N, num_classes)``.
    """

    def __init__(self, in_features: int, hidden: int = 24, num_classes: int = 4) -> None:
        super().__init__(ComplexLinear(in_features, hidden), Cardioid(), ComplexLinear(hidden, num_classes), RealPart())

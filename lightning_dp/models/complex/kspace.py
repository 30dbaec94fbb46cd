"""Networks that classify k-space: a fixed front, a few convolutions over complex or over real numbers, a real head."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.complex.activations import Cardioid
from lightning_dp.models.complex.fourier import InverseFourier2d, LocalContrast2d, UnitPower
from lightning_dp.models.complex.layers import ComplexConv2d
from lightning_dp.models.complex.phantoms import random_phantoms
from lightning_dp.models.complex.pooling import Magnitude

__all__ = ("Front", "KSpaceNet", "Numbers")

PHANTOMS = 256  # for constants that hold to some 6 % of a standard deviation
Front = Literal["contrast", "image", "kspace"]
Numbers = Literal["complex", "real"]


class Parts(nn.Module):
    """Real and imaginary parts as twice as many real channels."""

    def forward(self, z: Tensor) -> Tensor:
        """All real parts, then all imaginary parts."""
        return torch.cat([z.real, z.imag], 1)


class KSpaceNet(nn.Module):
    """Raw k-space to logits: fixed transforms, convolutions and cardioids, magnitudes, their mean, a linear head.

    Magnitudes are taken before the mean over the map, in which complex numbers of differing phase would cancel. There is no
    norm between the convolutions: how strong a contrast is tells the sequences apart, and a norm would divide it away.

    The features before the head (logarithms of the mean magnitudes) differ little from sample to sample beside what they have
    in common, and a linear head on them would learn slowly. They are therefore centred and scaled by constants: their mean
    and standard deviation over :func:`~lightning_dp.models.complex.phantoms.random_phantoms`, with the initial weights. The
    constants know of no data, so that they cost no privacy. They are buffers, set once when the network is made.

    Args:
        in_channels: receive coils.
        num_classes: outputs.
        widths: channels of each convolution.
        kernels: their sides, odd.
        strides: of each.
        front: what is done first, without parameters: ``"contrast"``: unit power, inverse Fourier transform and
            :class:`~lightning_dp.models.LocalContrast2d`; ``"image"``: without the last; ``"kspace"``: unit power only.
        size: side of the k-space, for the phantoms; the network takes any.
        numbers: ``"complex"``, or ``"real"``: the same network over the real and imaginary parts as channels, with
            :class:`torch.nn.Mish` and no magnitudes. For comparison.

    Shape:
        complex64 ``(N, in_channels, H, W)`` to float32 ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: for unknown names, lists of unequal length, or an input that is real or has other channels.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        in_channels: int = 2,
        num_classes: int = 4,
        widths: tuple[int, ...] = (12, 16),
        kernels: tuple[int, ...] = (3, 3),
        strides: tuple[int, ...] = (2, 2),
        front: Front = "contrast",
        size: int = 64,
        numbers: Numbers = "complex",
    ) -> None:
        super().__init__()
        for what, name, known in (("front", front, get_args(Front)), ("numbers", numbers, get_args(Numbers))):
            if name not in known:
                raise PrivacyConfigError(f"{what}={name!r} is unknown; choose one of {', '.join(known)}.")
        if not len(widths) == len(kernels) == len(strides) > 0:
            raise PrivacyConfigError(
                f"widths={widths}, kernels={kernels}, strides={strides}: give each convolution one of each, and at least one."
            )
        self.in_channels = in_channels
        fixed: list[nn.Module] = [UnitPower()]
        if front != "kspace":
            fixed.append(InverseFourier2d())
        if front == "contrast":
            fixed.append(LocalContrast2d())
        self.front = nn.Sequential(*fixed)
        channels = 2 if front == "contrast" else in_channels
        layers: list[nn.Module] = []
        real = numbers == "real"
        if real:
            channels *= 2
            layers.append(Parts())
        for width, kernel, stride in zip(widths, kernels, strides, strict=True):
            conv = nn.Conv2d if real else ComplexConv2d
            layers += [conv(channels, width, kernel, stride, kernel // 2, bias=True), nn.Mish() if real else Cardioid()]
            channels = width
        if not real:
            layers.append(Magnitude(1e-4))
        self.features = nn.Sequential(*layers)
        self.complex = not real
        self.head = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            found = self._means(random_phantoms(PHANTOMS, size, in_channels))
        self.register_buffer("centre", found.mean(0))
        self.register_buffer("spread", found.std(0).clamp_min(1e-3))

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        if not z.is_complex() or z.dim() != 4 or z.shape[1] != self.in_channels:
            raise PrivacyConfigError(
                f"KSpaceNet(in_channels={self.in_channels}) got {z.dtype} of shape {tuple(z.shape)}: it takes complex k-space "
                "(N, in_channels, H, W), the coils along axis 1."
            )
        logits: Tensor = self.head((self._means(z) - self.centre) / self.spread)
        return logits

    def _means(self, z: Tensor) -> Tensor:
        means: Tensor = self.features(self.front(z)).mean((2, 3))
        return means.log() if self.complex else means

"""A small convolutional network over the complex numbers, and the one over real channels that it is compared with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.complex.activations import Cardioid, ConjugateMish, IGaussian, SeparableMish
from lightning_dp.models.complex.layers import ComplexConv2d
from lightning_dp.models.complex.norm import ComplexGroupNorm
from lightning_dp.models.complex.pooling import ComplexAvgPool, ConjugatePool, Magnitude, RealPart

__all__ = ("ComplexCNN", "TwoChannelCNN")

ACTIVATIONS = {
    "cardioid": Cardioid,
    "conjugate_mish": ConjugateMish,
    "separable_mish": SeparableMish,
    "igaussian": IGaussian,
}
POOLINGS = {"average": ComplexAvgPool, "conjugate": ConjugatePool}
HEADS = {"magnitude": Magnitude, "real": RealPart}


class ComplexCNN(nn.Module):
    """Blocks of convolution, whitening norm, activation and pooling over the complex numbers; a real linear head.

    Args:
        in_channels: complex channels of the input: receive coils.
        num_classes: outputs.
        widths: complex channels of each block; each block but the last halves the map.
        activation: ``"cardioid"``, ``"conjugate_mish"``, ``"separable_mish"`` or ``"igaussian"``.
        pooling: ``"average"`` or ``"conjugate"``, between the blocks.
        head: ``"magnitude"`` or ``"real"``: how complex features become real ones. Magnitudes are taken before the mean over
            the map (phases would cancel in it), real parts after.
        groups: groups of the norms; they must divide the widths.

    Shape:
        complex64 ``(N, in_channels, H, W)`` to float32 ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: for unknown names, or an input that is real or has other channels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        widths: tuple[int, ...] = (8, 16, 16),
        activation: Literal["cardioid", "conjugate_mish", "separable_mish", "igaussian"] = "conjugate_mish",
        pooling: Literal["average", "conjugate"] = "average",
        head: Literal["magnitude", "real"] = "magnitude",
        groups: int = 4,
    ) -> None:
        super().__init__()
        for what, name, known in (
            ("activation", activation, ACTIVATIONS),
            ("pooling", pooling, POOLINGS),
            ("head", head, HEADS),
        ):
            if name not in known:
                raise PrivacyConfigError(f"{what}={name!r} is unknown; choose one of {', '.join(known)}.")
        if not widths:
            raise PrivacyConfigError("widths=() leaves no block: give the channels of at least one.")
        self.in_channels = in_channels
        layers: list[nn.Module] = []
        for number, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            layers += [ComplexConv2d(before, width, 3, padding=1), ComplexGroupNorm(groups, width)]
            layers.append(ACTIVATIONS[activation]())
            if number < len(widths) - 1:
                layers.append(POOLINGS[pooling](2))
        self.features = nn.Sequential(*layers)
        self.to_real = HEADS[head]()
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        if not z.is_complex() or z.dim() != 4 or z.shape[1] != self.in_channels:
            raise PrivacyConfigError(
                f"ComplexCNN(in_channels={self.in_channels}) got {z.dtype} of shape {tuple(z.shape)}: it takes complex images "
                "(N, in_channels, H, W). For real channels use TwoChannelCNN."
            )
        logits: Tensor = self.head(self.to_real(self.features(z)).mean((2, 3)))
        return logits


class TwoChannelCNN(nn.Module):
    """The real network of the same shape, which takes real and imaginary parts as channels: for comparison.

    It can learn every complex convolution (a real one on parts has twice the freedom), and does not know that the parts
    belong together.

    Args:
        in_channels: complex channels of the input.
        num_classes: outputs.
        widths: real channels of each block.
        groups: groups of the norms.

    Shape:
        complex64 ``(N, in_channels, H, W)`` to float32 ``(N, num_classes)``.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 4, widths: tuple[int, ...] = (12, 22, 22), groups: int = 2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, width) in enumerate(zip((2 * in_channels, *widths), widths, strict=False)):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.Mish()]
            if number < len(widths) - 1:
                layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(torch.cat([z.real, z.imag], 1)).mean((2, 3)))
        return logits

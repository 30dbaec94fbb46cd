"""The shape that MoNet and U-Net share: an encoder that halves, a decoder that doubles, skips that are concatenated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.replace import group_count

__all__ = ("Encoder", "EncoderDecoder", "conv", "conv_transpose", "group_norm")

Norm = Callable[[int], nn.Module]
Block = Callable[[int, int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """The default normalisation: it acts within one sample, so that it keeps the samples' gradients apart."""
    return nn.GroupNorm(group_count(channels), channels)


def conv(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution for images (2) or volumes (3).

    Raises:
        PrivacyConfigError: for another number of dimensions.
    """
    if dims not in (2, 3):
        raise PrivacyConfigError(f"dims={dims!r}: give 2 for images (N, C, H, W) or 3 for volumes (N, C, D, H, W).")
    return nn.Conv2d if dims == 2 else nn.Conv3d


def conv_transpose(dims: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    """The transposed convolution for images (2) or volumes (3)."""
    return nn.ConvTranspose2d if conv(dims) is nn.Conv2d else nn.ConvTranspose3d


class Encoder(nn.Module):
    """Levels of blocks with a halving of all sides between them; the last level is the bottleneck.

    Args:
        dims: 2 for images, 3 for volumes.
        in_channels: channels of the input.
        widths: channels of each level, the finest first.
        block: makes the block of a level from its numbers of channels in and out.
        down: makes what halves the sides, from the channels in and out, which are the same.

    Shape:
        ``(N, in_channels, *sides)`` -> one tensor for each level, ``(N, widths[k], *(side / 2^k))``.

    Raises:
        PrivacyConfigError: at construction, if there is no level or a number of channels is not positive.
        ValueError: if the input has other channels or axes, or a side that cannot be halved often enough.
    """

    def __init__(self, dims: int, in_channels: int, widths: Sequence[int], block: Block, down: Block) -> None:
        super().__init__()
        if not widths or min(*widths, in_channels) < 1:
            raise PrivacyConfigError(
                f"in_channels={in_channels} and widths={list(widths)}: channels are positive, and there is at least one level."
            )
        self.dims, self.in_channels, self.widths = dims, in_channels, tuple(widths)
        self.blocks, self.downs = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.blocks.append(block(in_channels if level == 0 else widths[level - 1], width))
            if level + 1 < len(widths):
                self.downs.append(down(width, width))

    @property
    def factor(self) -> int:
        """What every side must be a multiple of."""
        return int(2 ** len(self.downs))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The levels' features, the finest first, the bottleneck last."""
        self._check(x)
        features = []
        for level, block in enumerate(self.blocks):
            x = block(x if level == 0 else self.downs[level - 1](x))
            features.append(x)
        return features

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            axes = "H, W" if self.dims == 2 else "D, H, W"
            raise ValueError(
                f"expected (N, {self.in_channels}, {axes}), got {tuple(x.shape)}: give in_channels= the number of channels "
                f"of the data and dims= 2 or 3, or add the missing axis with unsqueeze(1)."
            )
        sides = tuple(x.shape[2:])
        if any(side % self.factor for side in sides):
            padded = tuple(-(-side // self.factor) * self.factor for side in sides)
            raise ValueError(
                f"sides {sides} cannot be halved {len(self.downs)} times: each must be a multiple of {self.factor}. Pad "
                f"or crop the data to such a size, for example to {padded}, or choose a smaller depth."
            )


class EncoderDecoder(nn.Module):
    """A segmentation network: features of an :class:`Encoder`, brought up level by level, and a 1x1 convolution.

    Args:
        encoder: gives the skips and the bottleneck.
        out_channels: channels of the output: one for each class, or 1 for foreground against background.
        block: as for the encoder.
        up: makes what doubles the sides, from its numbers of channels in and out.

    Shape:
        ``(N, in_channels, *sides)`` -> logits ``(N, out_channels, *sides)``.

    Raises:
        PrivacyConfigError: at construction, for ``out_channels < 1``.
        ValueError: as the encoder.
    """

    def __init__(self, encoder: Encoder, out_channels: int, block: Block, up: Block) -> None:
        super().__init__()
        if out_channels < 1:
            raise PrivacyConfigError(
                f"out_channels={out_channels}: one for each class, or 1 for foreground against background."
            )
        self.encoder, widths = encoder, encoder.widths
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for level in range(len(widths) - 2, -1, -1):
            self.ups.append(up(widths[level + 1], widths[level]))
            self.blocks.append(block(2 * widths[level], widths[level]))
        self.head = conv(encoder.dims)(widths[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel or voxel."""
        *skips, x = self.encoder(x)
        for up, block, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([up(x), skip], 1))
        logits: Tensor = self.head(x)
        return logits

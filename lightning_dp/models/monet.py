"""MoNet: a small segmentation network of densely connected dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.encoder_decoder import Encoder, EncoderDecoder, Norm, conv, conv_transpose, group_norm

__all__ = ("RDDC", "MoNet")


def _conv_norm_elu(
    dims: int,
    norm: Norm,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    # Without bias: the normalisation has one.
    layer = conv(dims)(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, norm(out_channels), nn.ELU())


class RDDC(nn.Module):
    """Repeated dilated dense convolutions: four 3x3 layers with dilations 4, 3, 2, 1 and sums of what came before.

    ``c1 = f4(x)``, ``c2 = f3(x + c1)``, ``c3 = f2(c2)``, ``c4 = f1(c2 + c3)``, with dropout after the first three; each
    ``f`` is a convolution without bias, a normalisation and an ELU. The convolutions see 10 voxels to each side
    (4 + 3 + 2 + 1).

    Args:
        channels: channels, of input and output.
        dims: 2 for images, 3 for volumes.
        dilations: of the four layers.
        dropout: probability of the dropout.
        residual: whether the input is added to the result, as the torch port of MoNet does; the TensorFlow code does not.
        norm: makes the normalisation for so many channels.

    Shape:
        ``(N, channels, *sides)`` -> the same.

    Raises:
        PrivacyConfigError: at construction, for another number of dilations than four.
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        dilations: Sequence[int] = (4, 3, 2, 1),
        dropout: float = 0.2,
        residual: bool = True,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        if len(dilations) != 4:
            raise PrivacyConfigError(f"dilations={list(dilations)}: give four numbers, one for each layer.")
        self.residual = residual
        self.first, self.second, self.third, self.fourth = (
            _conv_norm_elu(dims, norm, channels, channels, padding=d, dilation=d) for d in dilations
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The features of the fourth layer, with the input added if ``residual``."""
        first = self.dropout(self.first(x))
        second = self.dropout(self.second(x + first))
        third = self.dropout(self.third(second))
        fourth: Tensor = self.fourth(second + third)
        return fourth + x if self.residual else fourth


class MoNet(EncoderDecoder):
    """MoNet for images or volumes, with group normalisation.

    The network of the segmentation study of Ziller et al. 2021 (arXiv 2107.02586), after its public code: each level is a
    3x3 layer and an :class:`RDDC`; a 4x4 layer of stride 2 leads down and a transposed one up; the skip is concatenated;
    channels double from level to level.

    Two departures: batch normalisation, which couples the samples of a batch, is group normalisation; and the last 1x1
    convolution has a bias in place of a normalisation. Group normalisation there would give the logits of every image
    the same mean and variance, and so an image without any organ could not be told.

    Args:
        in_channels: channels of the data.
        out_channels: classes, or 1 for foreground against background.
        dims: 2 for images, 3 for volumes.
        filters: channels of the first level.
        depth: how often the sides are halved.
        dropout: probability of the dropout in each RDDC.
        residual: see :class:`RDDC`.
        norm: makes the normalisation for so many channels.

    Shape:
        ``(N, in_channels, *sides)``, sides multiples of ``2^depth`` -> logits ``(N, out_channels, *sides)``.

    Raises:
        PrivacyConfigError: at construction, for numbers that are not positive.
        ValueError: for inputs of other channels or axes, or with sides that cannot be halved.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        dims: int = 2,
        filters: int = 16,
        depth: int = 2,
        dropout: float = 0.2,
        residual: bool = True,
        norm: Norm = group_norm,
    ) -> None:
        layer = partial(_conv_norm_elu, dims, norm)

        def block(channels_in: int, channels_out: int) -> nn.Module:
            dense = RDDC(channels_out, dims, dropout=dropout, residual=residual, norm=norm)
            return nn.Sequential(layer(channels_in, channels_out), dense)

        def up(channels_in: int, channels_out: int) -> nn.Module:
            doubled = conv_transpose(dims)(channels_in, channels_out, 4, 2, 1, bias=False)
            return nn.Sequential(doubled, norm(channels_out), nn.ELU())

        widths = [filters * 2**level for level in range(depth + 1)]
        encoder = Encoder(dims, in_channels, widths, block, partial(layer, kernel_size=4, stride=2))
        super().__init__(encoder, out_channels, block, up)

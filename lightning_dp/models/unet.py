"""U-Net for images or volumes."""

from __future__ import annotations

from torch import nn

from lightning_dp.models.encoder_decoder import Encoder, EncoderDecoder, Norm, conv, conv_transpose, group_norm

__all__ = ("UNet",)


class UNet(EncoderDecoder):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597; in 3D Cicek et al. 2016, arXiv 1606.06650), with group normalisation.

    Two 3x3 convolutions a level, each with a normalisation and a ReLU; maximum pooling leads down, a 2x2 transposed
    convolution of stride 2 up, skips are concatenated, channels double from level to level. Convolutions keep the size, so
    that the output is as large as the input (the original crops).

    Args:
        in_channels: channels of the data.
        out_channels: classes, or 1 for foreground against background.
        dims: 2 for images, 3 for volumes.
        filters: channels of the first level.
        depth: how often the sides are halved.
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
        depth: int = 3,
        norm: Norm = group_norm,
    ) -> None:
        def block(channels_in: int, channels_out: int) -> nn.Module:
            layers: list[nn.Module] = []
            for channels in (channels_in, channels_out):
                layers += [conv(dims)(channels, channels_out, 3, padding=1, bias=False), norm(channels_out), nn.ReLU()]
            return nn.Sequential(*layers)

        def down(channels_in: int, channels_out: int) -> nn.Module:
            return nn.MaxPool2d(2) if dims == 2 else nn.MaxPool3d(2)

        def up(channels_in: int, channels_out: int) -> nn.Module:
            return conv_transpose(dims)(channels_in, channels_out, 2, 2)

        widths = [filters * 2**level for level in range(depth + 1)]
        super().__init__(Encoder(dims, in_channels, widths, block, down), out_channels, block, up)

"""A fully convolutional detector with group normalisation, small enough for a CPU."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError

__all__ = ("BOX_NUMBERS", "AnchorFreeDetector")

#: Numbers by which a cell describes its box: offset of the centre (x, y) and logarithms of width and height.
BOX_NUMBERS = 4
_COARSEST = 8


def _block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    groups = max(1, channels_out // 8)  # eight channels a group: a small group's statistics would drown one pixel
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.GroupNorm(groups, channels_out),
        nn.ReLU(),
    )


class AnchorFreeDetector(nn.Module):
    """One prediction for each cell of a grid over the image: the classes at this place, and the box around it.

    In the manner of FCOS (Tian et al. 2019, arXiv 1904.01355) and CenterNet (Zhou et al. 2019, arXiv 1904.07850), cut down
    to one grid and to what private training can afford: few parameters, no anchors to tune on the data, no centredness
    branch. GroupNorm normalises within one image, so that the gradients of images stay apart; BatchNorm would not.

    Three stages halve the image to 1/8; with ``stride=4`` their result is put back to 1/4 and added to the second stage's,
    which finds smaller and denser objects at about twice the cost.

    Args:
        num_classes: Number of classes, 1 or more.
        in_channels: Channels of the images.
        width: Channels of the first stage; the second has twice, the third four times as many.
        stride: Pixels between the cells of the grid, 4 or 8.
        prior: Probability of an object that an untrained network gives each class in each cell. A public guess; a small
            one keeps the many empty cells from filling the first gradients.
        shift: Subtracted from the pixels. Give a public constant: a mean measured on private images is a release that no
            eps accounts for.
        scale: The pixels are then divided by it; likewise.

    Raises:
        PrivacyConfigError: A setting is out of its range.

    Shape:
        ``(N, in_channels, H, W)`` with H and W divisible by 8 -> ``(N, num_classes + 4, H / stride, W / stride)``: logits of
        the classes, then offset (x, y) and log width and height in units of the grid.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        stride: Literal[4, 8] = 8,
        prior: float = 0.02,
        shift: float = 0.5,
        scale: float = 0.25,
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1 or width < 1:
            raise PrivacyConfigError(
                f"num_classes={num_classes}, in_channels={in_channels} and width={width} must be 1 or more."
            )
        if stride not in (4, 8):
            raise PrivacyConfigError(f"stride={stride} is unknown; choose 4 (small, dense objects) or 8 (faster).")
        if not 0.0 < prior < 1.0:
            raise PrivacyConfigError(f"prior={prior} is no probability; choose it between 0 and 1, say 0.02.")
        self.num_classes, self.in_channels, self.stride = num_classes, in_channels, stride
        self.shift, self.scale = shift, scale
        self.stem = _block(in_channels, width, 2)
        self.fine = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.coarse = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width, 1))
        self.across: nn.Module | None = nn.Conv2d(2 * width, 4 * width, 1) if stride == 4 else None
        self.neck = _block(4 * width, 4 * width, 1)
        self.head = nn.Conv2d(4 * width, num_classes + BOX_NUMBERS, 1)
        bias = torch.zeros(num_classes + BOX_NUMBERS)
        bias[:num_classes] = math.log(prior / (1.0 - prior))
        self.head.bias = nn.Parameter(bias)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits and boxes of every cell.

        Raises:
            ValueError: The images have another number of channels, or a side that 8 does not divide.
        """
        self._check(images)
        fine = self.fine(self.stem((images - self.shift) / self.scale))
        features: Tensor = self.coarse(fine)
        if self.across is not None:
            features = self.across(fine) + nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")
        found: Tensor = self.head(self.neck(features))
        return found

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4:
            raise ValueError(f"images must have the shape (N, {self.in_channels}, H, W), got {tuple(images.shape)}.")
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"images have {images.shape[1]} channels, the detector takes {self.in_channels}: build it with "
                f"in_channels={images.shape[1]}, or convert the images (Pillow: image.convert('RGB'))."
            )
        if images.shape[2] % _COARSEST or images.shape[3] % _COARSEST:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: {_COARSEST} must divide height and width, so that "
                "the grid covers the whole image. Resize or pad them (torch.nn.functional.pad)."
            )

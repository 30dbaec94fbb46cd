"""SmoothNet: a wide, shallow dense network that keeps its accuracy under clipping and noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_images, check_positive
from lightning_dp.models.replace import group_count

__all__ = ("SmoothNet",)

HEAD = (256, 128)  # of the paper's public code, whatever the width
POOLED = 4


class SmoothBlock(nn.Sequential):
    """``conv 3x3 - max pool 3x3 in steps of one - normalisation - SELU``.

    Args:
        inputs: input channels.
        outputs: output channels k.
        groups: the most groups of a GroupNorm; 0: InstanceNorm; None: no normalisation.
        separable: whether the convolution is depthwise separable.
    """

    def __init__(self, inputs: int, outputs: int, groups: int | None, separable: bool) -> None:
        if separable:
            depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
            convs = [depthwise, nn.Conv2d(inputs, outputs, 1, bias=False)]
        else:
            convs = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
        super().__init__(*convs, nn.MaxPool2d(3, 1, 1), *_norms(outputs, groups), nn.SELU())


def _norms(channels: int, groups: int | None) -> list[nn.Module]:
    if groups is None:
        return []
    return [nn.GroupNorm(group_count(channels, groups), channels) if groups else nn.InstanceNorm2d(channels)]


class SmoothStack(nn.Module):
    """Blocks that each see the stack's input and the outputs of all blocks before.

    Args:
        inputs: input channels.
        growth: output channels k of each block.
        depth: number L of blocks.
        groups, separable: see `SmoothBlock`.

    Shape:
        ``(N, inputs, H, W)`` -> ``(N, inputs + L * k, H, W)``; the last k channels are the last block's output.
    """

    def __init__(self, inputs: int, growth: int, depth: int, groups: int | None, separable: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SmoothBlock(inputs + i * growth, growth, groups, separable) for i in range(depth))
        self.out_channels = inputs + depth * growth

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return x


class SmoothNet(nn.Module):
    """SmoothNet of any width and depth (Remerscheid et al. 2022, arXiv 2205.04095).

    Two densely connected stacks of `SmoothBlock`, the first with 8 * width channels a block and the second with 16 * width;
    between them a 1 x 1 convolution that halves the channels and an average pooling; then three fully connected layers. The
    paper's network W80D50 has width 8 and depth 5: 3,391,853 parameters for three channels and ten classes.

    The authors' class has its transition for three input channels and ten classes only; this one counts channels and takes
    any number of both.

    Args:
        num_classes: number of classes.
        in_channels: channels of the images.
        width: 8.0 for "W80"; multiplied by 8 and rounded down for the first stack's channels, by 16 for the second's.
        depth: blocks of each stack, 5 for "D50".
        groups: the most groups of each GroupNorm; 0: InstanceNorm, a choice of the authors' code too, here in PyTorch's default
            form (each channel of each image by itself, without learned weights and without running statistics, which would
            be private data in a buffer); None: no normalisation. Their fourth choice, BatchNorm, couples the samples.
        separable: depthwise separable convolutions.

    Shape:
        ``(N, in_channels, H, W)``, 16 x 16 pixels or more -> ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: sizes of nothing; in ``forward``, images that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 8.0,
        depth: int = 5,
        groups: int | None = 8,
        separable: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "depth": depth}
        check_positive("SmoothNet", sizes | ({"groups": groups} if groups else {}))
        growth = (int(8 * width), int(16 * width))
        if growth[0] < 1:
            raise PrivacyConfigError(f"SmoothNet(width={width!r}) has no channels: give at least 0.125.")
        self.in_channels, self.num_classes, self.growth = in_channels, num_classes, growth
        self.stack0 = SmoothStack(in_channels, growth[0], depth, groups, separable)
        between = self.stack0.out_channels // 2
        self.transition = nn.Sequential(nn.Conv2d(self.stack0.out_channels, between, 1, bias=False), nn.AvgPool2d(2))
        self.stack1 = SmoothStack(between, growth[1], depth, groups, separable)
        self.pool = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(POOLED))
        features = growth[1] * POOLED**2
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(features, HEAD[0]), nn.SELU(), nn.Linear(HEAD[0], HEAD[1]), nn.SELU(),
            nn.Linear(HEAD[1], num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        check_images(images, self.in_channels, 4 * POOLED, "SmoothNet")
        x = self.stack1(self.transition(self.stack0(images)))
        logits: Tensor = self.head(self.pool(x[:, -self.growth[1] :]))
        return logits

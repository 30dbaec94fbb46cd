"""Wide residual networks with standardised weights and group normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_images, check_positive
from lightning_dp.models.replace import group_count
from lightning_dp.models.scale_norm import ScaleNorm
from lightning_dp.models.weight_standardised import StandardisedConv2d

__all__ = ("WideResNet",)

STAGES = (16, 32, 64)  # channels of the three stages before widening


class PreActivationBlock(nn.Module):
    """``norm - ReLU - conv - norm - ReLU - conv``, added to the input.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, scale_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(inputs, groups), inputs)
        self.conv1 = StandardisedConv2d(inputs, outputs, 3, stride, padding=1)
        self.norm2 = nn.GroupNorm(group_count(outputs, groups), outputs)
        self.conv2 = StandardisedConv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else StandardisedConv2d(inputs, outputs, 1, stride)
        self.scale_norm = ScaleNorm(outputs, groups) if scale_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(h)
        out: Tensor = self.scale_norm(shortcut + self.conv2(F.relu(self.norm2(self.conv1(h)))))
        return out


class WideResNet(nn.Module):
    """A wide residual network as De et al. 2022 train it (arXiv 2204.13650): weight standardisation, GroupNorm, no BatchNorm.

    The network is Zagoruyko and Komodakis' (2016, arXiv 1605.07146), pre-activation; WRN-16-4 is ``depth=16, width=4``.

    Args:
        num_classes: number of classes.
        in_channels: channels of the images.
        depth: layers with weights on the longest path, 6 k + 4 with k blocks a stage.
        width: factor on the channels 16, 32, 64 of the three stages.
        groups: the most groups of each GroupNorm.
        scale_norm: whether each block ends in a ScaleNorm.

    Shape:
        ``(N, in_channels, H, W)``, 8 x 8 pixels or more -> ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: a depth that is no 6 k + 4, or sizes of nothing; in ``forward``, images that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = 16,
        width: int = 4,
        groups: int = 16,
        scale_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "groups": groups}
        check_positive("WideResNet", sizes)
        if depth < 10 or depth % 6 != 4:
            raise PrivacyConfigError(f"WideResNet(depth={depth!r}): a depth is 6 k + 4, so 10, 16, 22, 28, 34 or 40.")
        self.in_channels, self.num_classes = in_channels, num_classes
        channels = [STAGES[0], *(width * stage for stage in STAGES)]
        self.conv = StandardisedConv2d(in_channels, channels[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for block in range((depth - 4) // 6):
                inputs = channels[stage] if block == 0 else channels[stage + 1]
                stride = 2 if stage and block == 0 else 1
                blocks.append(PreActivationBlock(inputs, channels[stage + 1], stride, groups, scale_norm))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(group_count(channels[-1], groups), channels[-1])
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        check_images(images, self.in_channels, 8, "WideResNet")
        x = F.relu(self.norm(self.blocks(self.conv(images))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

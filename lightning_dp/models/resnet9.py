"""ResNet-9 with ScaleNorm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_images, check_positive
from lightning_dp.models.replace import group_count
from lightning_dp.models.scale_norm import ScaleNorm
from lightning_dp.models.weight_standardised import StandardisedConv2d

__all__ = ("ResNet9",)


class _Residual(nn.Module):
    """``scale_norm(x + branch(x))``."""

    def __init__(self, branch: nn.Module, scale_norm: nn.Module) -> None:
        super().__init__()
        self.branch, self.scale_norm = branch, scale_norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale_norm(x + self.branch(x))
        return out


class ResNet9(nn.Module):
    """The ResNet-9 of Klause et al. 2022 (arXiv 2203.00324): group norms, Mish, and ScaleNorm after both additions.

    ``conv 64 - conv 128, pool - residual 128 - conv 256, pool - conv 256 - residual 256 - pool to 2 x 2 - linear``; every
    conv is 3 x 3 without bias, then GroupNorm, then the activation. A residual branch ends in its own norm and activation.
    2,448,714 parameters for three channels and ten classes, 2,447,946 without ScaleNorm.

    Args:
        num_classes: number of classes.
        in_channels: channels of the images.
        scale_norm: whether there is a ScaleNorm after each addition.
        groups: the most groups of (first two convs; first residual block and its ScaleNorm; next two convs; second residual
            block and its ScaleNorm). A layer of C channels takes the largest divisor of C not above.
        width: channels of the first conv; the others have twice and four times as many.
        weight_standardised: whether convs are `StandardisedConv2d`.
        activation: makes one activation module.

    Shape:
        ``(N, in_channels, H, W)``, 8 x 8 pixels or more -> ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: sizes of nothing, or not four numbers of groups; in ``forward``, images that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        scale_norm: bool = True,
        groups: Sequence[int] = (32, 32, 32, 32),
        width: int = 64,
        weight_standardised: bool = False,
        activation: Callable[[], nn.Module] = nn.Mish,
    ) -> None:
        super().__init__()
        check_positive("ResNet9", {"num_classes": num_classes, "in_channels": in_channels, "width": width})
        if len(groups) != 4 or min(groups) < 1:
            raise PrivacyConfigError(
                f"ResNet9(groups={tuple(groups)!r}): give four numbers of groups, each at least 1."
            )
        self.in_channels, self.num_classes = in_channels, num_classes

        def unit(inputs: int, outputs: int, count: int, pool: bool = False) -> nn.Sequential:
            conv = StandardisedConv2d if weight_standardised else nn.Conv2d
            layers = [conv(inputs, outputs, 3, padding=1, bias=False)]
            norm = nn.GroupNorm(group_count(outputs, count), outputs)
            return nn.Sequential(*layers, norm, activation(), *([nn.MaxPool2d(2)] if pool else []))

        def residual(channels: int, count: int) -> nn.Module:
            branch = nn.Sequential(unit(channels, channels, count), unit(channels, channels, count))
            return _Residual(branch, ScaleNorm(channels, count) if scale_norm else nn.Identity())

        self.conv1 = unit(in_channels, width, groups[0])
        self.conv2 = unit(width, 2 * width, groups[0], pool=True)
        self.res1 = residual(2 * width, groups[1])
        self.conv3 = unit(2 * width, 4 * width, groups[2], pool=True)
        self.conv4 = unit(4 * width, 4 * width, groups[2])
        self.res2 = residual(4 * width, groups[3])
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.classifier = nn.Linear(16 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        check_images(images, self.in_channels, 8, "ResNet9")
        x = self.res1(self.conv2(self.conv1(images)))
        x = self.res2(self.conv4(self.conv3(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits

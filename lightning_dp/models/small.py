"""Small networks that train well under per-sample clipping and noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_features, check_images, check_positive

__all__ = ("ColourCNN", "FlatLinear", "SlidingMax", "TemperedCNN", "TemperedSigmoid")


class TemperedSigmoid(nn.Module):
    """``scale / (1 + exp(-temperature * x)) - offset``, a bounded activation; ``(2, 2, 1)`` is the hyperbolic tangent.

    Bounded activations keep the activations, and with them the per-sample gradient norms, from growing over training,
    so that clipping at a fixed norm distorts less (Papernot et al. 2021, "Tempered Sigmoid Activations for Deep
    Learning with Differential Privacy", arXiv 2007.14191, eq. 1).

    Args:
        scale: Height of the range.
        temperature: Inverse width of the transition.
        offset: Shift of the range, which is ``(-offset, scale - offset)``.
    """

    def __init__(self, scale: float = 2.0, temperature: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        self.scale, self.temperature, self.offset = scale, temperature, offset

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to each element."""
        return self.scale * torch.sigmoid(self.temperature * x) - self.offset

    def extra_repr(self) -> str:
        """The three constants."""
        return f"scale={self.scale}, temperature={self.temperature}, offset={self.offset}"


class SlidingMax(nn.Module):
    """Maximum over windows of 2 x 2 pixels in steps of one, as ``nn.MaxPool2d(2, 1)``, several times faster on a CPU.

    Where the maximum is attained twice, which bounded activations in saturation do, the gradient is shared.

    Shape:
        ``(..., H, W)`` -> ``(..., H - 1, W - 1)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maximum of each pixel and its right, lower and lower right neighbours."""
        x = torch.maximum(x[..., :-1], x[..., 1:])
        return torch.maximum(x[..., :-1, :], x[..., 1:, :])


class FlatLinear(nn.Module):
    """A linear classifier on flattened inputs, starting from zero: every class equally likely, no random direction.

    On fixed features this is a convex problem. Under differential privacy its per-sample gradient norms cost next to
    nothing, and large batches of precomputed features are cheap (Tramer & Boneh 2021, arXiv 2011.11660).

    Args:
        in_features: Elements of a sample.
        num_classes: Number of classes.

    Shape:
        ``(N, ...)`` with ``in_features`` elements a sample -> ``(N, num_classes)``.
    """

    def __init__(self, in_features: int, num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        check_features(x, self.linear.in_features, "FlatLinear", "in_features=")
        logits: Tensor = self.linear(x.flatten(1))
        return logits


class TemperedCNN(nn.Module):
    """The network of Papernot et al. 2021 (table 1) for 28 x 28 images: 26,010 parameters in the ten-class case.

    ``conv 8x8/2 (16) - act - max pool 2/1 - conv 4x4/2 (32) - act - max pool 2/1 - linear 32 - act - linear``.

    Args:
        num_classes: Number of classes.
        activation: Makes one activation module; by default the hyperbolic tangent.
        group_norm: Whether each convolution is followed by a GroupNorm (4 channels a group). It normalises within one
            image, so that, unlike BatchNorm, it keeps the images' gradients apart.
        shift: Subtracted from the pixels. Give a public constant: a mean measured on private images is a release that no
            eps accounts for.
        scale: The pixels are then divided by it; likewise.

    Shape:
        ``(N, 1, 28, 28)`` -> ``(N, num_classes)``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        activation: Callable[[], nn.Module] = nn.Tanh,
        group_norm: bool = False,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shift, self.scale = shift, scale
        layers: list[nn.Module] = []
        for conv in (nn.Conv2d(1, 16, 8, 2, padding=3), nn.Conv2d(16, 32, 4, 2)):
            layers.append(conv)
            if group_norm:
                layers.append(nn.GroupNorm(conv.out_channels // 4, conv.out_channels))
            layers += [activation(), SlidingMax()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 32), activation(), nn.Linear(32, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        if tuple(images.shape[1:]) != (1, 28, 28):
            raise PrivacyConfigError(
                f"TemperedCNN takes images (N, 1, 28, 28) and got {tuple(images.shape)}: resize them or take their mean over "
                "the channels, or choose ColourCNN, which is made for any channels and sizes."
            )
        logits: Tensor = self.layers((images - self.shift) / self.scale)
        return logits


class ColourCNN(nn.Module):
    """A plain network for colour images: three pairs of 3 x 3 convolutions, each followed by max pooling, two linear layers.

    With tanh, width 32 and 32 x 32 images it is the layout that Papernot et al. 2021 (arXiv 2007.14191) train on CIFAR-10:
    550,570 parameters in the ten-class case. No normalisation, no shortcut: what the networks with both are held against.

    Args:
        num_classes: number of classes.
        in_channels: channels of the images.
        size: height and width of the images, a multiple of 8.
        width: channels of the first pair; the others have twice and four times as many.
        activation: makes one activation module; by default the hyperbolic tangent.

    Shape:
        ``(N, in_channels, size, size)`` -> ``(N, num_classes)``.

    Raises:
        PrivacyConfigError: a size that is no multiple of 8, or sizes of nothing; in ``forward``, images that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
        width: int = 32,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        check_positive(
            "ColourCNN", {"num_classes": num_classes, "in_channels": in_channels, "width": width, "size": size}
        )
        if size % 8:
            raise PrivacyConfigError(
                f"ColourCNN(size={size}): the images are halved three times; give a multiple of 8."
            )
        self.in_channels, self.size = in_channels, size
        layers: list[nn.Module] = []
        channels = in_channels
        for outputs in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), activation()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), activation(), nn.MaxPool2d(2)]
            channels = outputs
        hidden = nn.Linear(channels * (size // 8) ** 2, 4 * width)
        self.layers = nn.Sequential(*layers, nn.Flatten(), hidden, activation(), nn.Linear(4 * width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        check_images(images, self.in_channels, self.size, "ColourCNN")
        if tuple(images.shape[2:]) != (self.size, self.size):
            raise PrivacyConfigError(
                f"ColourCNN was made for images of {self.size} x {self.size} pixels and got {tuple(images.shape[2:])}: make it "
                "with size= their side, or resize them."
            )
        logits: Tensor = self.layers(images)
        return logits

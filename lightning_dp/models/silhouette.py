"""A small network on masks of a body from several sides: the baseline beside networks on the surface itself."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_images, check_positive
from lightning_dp.models.replace import group_count

__all__ = ("SilhouetteCNN",)


class SilhouetteCNN(nn.Module):
    """Four convolutions in steps of two with GroupNorm, and two linear layers: numbers from silhouettes.

    Body fat from silhouettes is what the field measures itself against (R2 of 0.88 for visceral and 0.93 for subcutaneous
    fat in a cohort of 40,032, by a large network on masks from magnetic resonance); this network is small, and ours. The last
    map is flattened and not pooled, since where the outline lies on a frame of known size is what decides.

    Args:
        outputs: numbers predicted.
        views: channels: one mask a view.
        size: rows and columns of a mask, multiples of 16 from 32 on.
        width: channels of the first convolution; the others have twice and four times, and again four times as many.
        hidden: width of the first linear layer.

    Shape:
        ``(N, views, *size)`` -> ``(N, outputs)``.

    Raises:
        PrivacyConfigError: sizes of nothing or no multiples of 16 from 32 on; in ``forward``, masks that do not fit.
    """

    def __init__(
        self, outputs: int = 2, views: int = 2, size: tuple[int, int] = (96, 64), width: int = 8, hidden: int = 64
    ) -> None:
        super().__init__()
        named = {"outputs": outputs, "views": views, "width": width, "hidden": hidden, "size": min(size)}
        check_positive("SilhouetteCNN", named)
        if any(side % 16 or side < 32 for side in size):
            raise PrivacyConfigError(
                f"SilhouetteCNN(size={tuple(size)}): masks are halved four times; give multiples of 16 from 32 on."
            )
        self.views, self.size = views, tuple(size)
        layers: list[nn.Module] = []
        channels = views
        for outs in (width, 2 * width, 4 * width, 4 * width):
            norm = nn.GroupNorm(group_count(outs, 8), outs)
            layers += [nn.Conv2d(channels, outs, 3, stride=2, padding=1), norm, nn.ReLU()]
            channels = outs
        features = channels * (size[0] // 16) * (size[1] // 16)
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, masks: Tensor) -> Tensor:
        """The numbers."""
        check_images(masks, self.views, 32, "SilhouetteCNN")
        if tuple(masks.shape[2:]) != self.size:
            raise PrivacyConfigError(
                f"SilhouetteCNN was made for masks of {self.size[0]} x {self.size[1]} pixels and got {tuple(masks.shape[2:])}: "
                "make it with size= their sides."
            )
        found: Tensor = self.layers(masks)
        return found

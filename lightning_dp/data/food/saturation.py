"""Saturation brought to one level, image by image, so that night looks more like day."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ("MEAN_SATURATION", "normalise_saturation", "saturation")

#: To which mean (of 0 to 255) the Oktoberfest Food Dataset's authors bring an image's saturation.
MEAN_SATURATION = 114.0
_HALVINGS = 24


def saturation(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """S of HSV, 0 to 255, of RGB pixels along the last axis."""
    top = images.max(-1).astype(np.float32)
    found: NDArray[np.float32] = 255.0 * (top - images.min(-1)) / np.maximum(top, 1.0)
    return found


def normalise_saturation(images: NDArray[np.uint8], mean: float = MEAN_SATURATION) -> NDArray[np.uint8]:
    """Scale the saturation of each image so that its mean is ``mean``; hue and value stay.

    What would pass 255 stays at 255, and the factor is chosen with regard to that. An image with too many grey pixels cannot
    reach the mean and gets as near as it can; a grey one stays. A function of one image: it spends no privacy.

    Args:
        images: RGB, uint8 ``(..., H, W, 3)``.
        mean: 0 to 255.

    Raises:
        ValueError: No RGB images, or no mean that a saturation can have.
    """
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be RGB, uint8 (..., H, W, 3), got {images.dtype} {images.shape}: convert('RGB') in Pillow."
        )
    if not 0.0 <= mean <= 255.0:
        raise ValueError(f"mean={mean} must lie between 0 and 255.")
    flat = images.reshape(-1, *images.shape[-3:])
    found = [_one(image, mean) for image in flat]
    return np.stack(found).reshape(images.shape) if found else images


def _one(image: NDArray[np.uint8], mean: float) -> NDArray[np.uint8]:
    now = saturation(image)
    if now.max() == 0:
        return image
    low, high = 0.0, 255.0 / float(now[now > 0].min())  # at the upper end all that has a colour has it fully
    for _ in range(_HALVINGS):
        factor = (low + high) / 2
        low, high = (factor, high) if np.minimum(now * factor, 255.0).mean() < mean else (low, factor)
    ratio: Any = np.minimum(now * high, 255.0) / np.where(now > 0, now, 1.0)
    top = image.max(-1, keepdims=True).astype(np.float32)
    found: NDArray[np.uint8] = np.rint(top - (top - image) * ratio[..., None]).clip(0, 255).astype(np.uint8)
    return found

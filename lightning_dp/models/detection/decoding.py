"""From the grid back to boxes: the most certain ones, each object once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.detection.network import BOX_NUMBERS
from lightning_dp.models.detection.targets import cell_centres
from lightning_dp.optional import require

__all__ = ("Detections", "boxes_of_cells", "decode", "suppress")

#: A new network's boxes are this many cells wide and high.
_START = 2.0
#: Largest logarithm of a box's side in cells that is followed; a larger one would overflow before it meant anything.
_MOST = 4.0


class Detections(NamedTuple):
    """What was found in one image, most certain first.

    Attributes:
        boxes: ``(n, 4)``, x1, y1, x2, y2 in pixels.
        scores: ``(n,)``, in [0, 1].
        labels: ``(n,)``, classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def boxes_of_cells(raw: Tensor, stride: int) -> Tensor:
    """Boxes ``(N, K, 4)``, x1, y1, x2, y2 in pixels, of offsets and log sizes ``(N, 4, rows, columns)``."""
    centres = cell_centres(raw.shape[2], raw.shape[3], stride, raw)
    numbers = raw.flatten(2).transpose(1, 2)
    middle = centres + stride * numbers[..., :2]
    half = 0.5 * _START * stride * numbers[..., 2:].clamp(max=_MOST).exp()
    return torch.cat([middle - half, middle + half], -1)


def suppress(found: Detections, iou_threshold: float = 0.5, class_agnostic: bool = False) -> Detections:
    """Non-maximum suppression: of boxes that overlap, the one with the higher score stays.

    Args:
        found: In any order.
        iou_threshold: Overlap (intersection over union) above which the lower one goes.
        class_agnostic: Whether a box also suppresses those of other classes: one object, one class.

    Returns:
        What stays, most certain first.

    Raises:
        PrivacyConfigError: The threshold is not in [0, 1].
        ModuleNotFoundError: torchvision is not installed.
    """
    if not 0.0 <= iou_threshold <= 1.0:
        raise PrivacyConfigError(f"iou_threshold={iou_threshold} must lie in [0, 1].")
    ops = require("torchvision.ops", "recipes", "Non-maximum suppression")
    labels = torch.zeros_like(found.labels) if class_agnostic else found.labels
    kept = ops.batched_nms(found.boxes, found.scores, labels, iou_threshold)
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def decode(
    outputs: Tensor,
    stride: int,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 50,
    class_agnostic: bool = False,
) -> list[Detections]:
    """The objects of each image.

    Args:
        outputs: Of `AnchorFreeDetector`, ``(N, num_classes + 4, rows, columns)``.
        stride: Pixels between cells.
        score_threshold: Lowest score that counts.
        iou_threshold: See `suppress`.
        max_detections: Most objects of an image.
        class_agnostic: See `suppress`.

    Returns:
        For each image its objects, cut at the border, most certain first.
    """
    height, width = outputs.shape[2] * stride, outputs.shape[3] * stride
    scores = outputs[:, :-BOX_NUMBERS].flatten(2).transpose(1, 2).sigmoid()
    boxes = boxes_of_cells(outputs[:, -BOX_NUMBERS:], stride)
    limit = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    found = []
    for of_image, box in zip(scores, boxes, strict=True):
        cell, label = (of_image > score_threshold).nonzero(as_tuple=True)
        sure = of_image[cell, label]
        kept = suppress(Detections(box[cell], sure, label), iou_threshold, class_agnostic)
        found.append(Detections(*(value[:max_detections] for value in kept)))
    return found

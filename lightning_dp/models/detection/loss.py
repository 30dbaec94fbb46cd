"""The detector's loss, image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.detection.decoding import boxes_of_cells
from lightning_dp.models.detection.network import BOX_NUMBERS
from lightning_dp.models.detection.padding import PADDING, check_targets
from lightning_dp.models.detection.targets import assign
from lightning_dp.optional import require

__all__ = ("detection_loss",)


def detection_loss(
    outputs: Tensor,
    boxes: Tensor,
    labels: Tensor,
    stride: int,
    radius: float = 1.0,
    expected_positives: float = 4.0,
    box_weight: float = 1.0,
    alpha: float = 0.5,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss of the classes (Lin et al. 2017, arXiv 1708.02002) and GIoU loss of the boxes, for each image.

    Both are sums over the image's cells, divided by ``expected_positives``. Detectors usually divide by the number of
    cells with an object *in the batch*: then every image's gradient depends on what the other images show, and clipping it
    bounds nothing. A public constant keeps the images apart; an image with many objects weighs more, until it is clipped.

    Args:
        outputs: Of `AnchorFreeDetector`, ``(N, num_classes + 4, rows, columns)``.
        boxes: ``(N, M, 4)``, x1, y1, x2, y2 in pixels.
        labels: ``(N, M)``, -1 where nothing is.
        stride: Pixels between cells.
        radius: Cells around a box's centre that answer for it, see `assign`.
        expected_positives: A public constant in place of the number of cells with an object.
        box_weight: Weight of the boxes' part.
        alpha: Weight of cells with an object in the focal loss, against ``1 - alpha``.
        gamma: How strongly the focal loss passes over what is right already; 0 gives cross-entropy.

    Returns:
        ``(N,)``; the mean over it is the loss of a batch.

    Raises:
        PrivacyConfigError: ``expected_positives`` is not positive.
        ValueError: The targets fit no image of this size, see `check_targets`.
        ModuleNotFoundError: torchvision is not installed.
    """
    if not expected_positives > 0:
        raise PrivacyConfigError(
            f"expected_positives={expected_positives} must be positive: a public guess at the number of cells with an "
            "object in an image, such as 4."
        )
    if len(outputs) != len(boxes):
        raise ValueError(f"{len(outputs)} images and boxes of {len(boxes)}: give targets for every image.")
    ops = require("torchvision.ops", "recipes", "The detector's loss")
    num_classes, rows, columns = outputs.shape[1] - BOX_NUMBERS, outputs.shape[2], outputs.shape[3]
    check_targets(boxes, labels, num_classes, rows * stride, columns * stride)
    target = assign(boxes, labels, rows, columns, stride, radius)
    logits = outputs[:, :num_classes].flatten(2).transpose(1, 2)
    classes = torch.arange(num_classes, device=labels.device)
    truth = (target.labels[..., None] == classes).to(logits.dtype)
    of_classes = ops.sigmoid_focal_loss(logits, truth, alpha=alpha, gamma=gamma).sum((1, 2))
    positive = target.labels != PADDING
    predicted = boxes_of_cells(outputs[:, num_classes:], stride)
    apart = ops.generalized_box_iou_loss(predicted, target.boxes)
    of_boxes = torch.where(positive, apart, 0.0).sum(1)
    loss: Tensor = (of_classes + box_weight * of_boxes) / expected_positives
    return loss

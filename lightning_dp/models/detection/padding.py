"""Boxes of images as plain tensors, and what is wrong with them said in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("PADDING", "check_targets", "pad_targets")

#: Label of a place that holds no object.
PADDING = -1


def pad_targets(boxes: Sequence[Tensor], labels: Sequence[Tensor], max_boxes: int) -> tuple[Tensor, Tensor]:
    """The boxes of several images as two tensors, so that a batch is stacked and one image is one row.

    ``max_boxes`` is a public constant: a length taken from the images at hand would show how many objects there are.

    Args:
        boxes: For each image ``(m, 4)``, x1, y1, x2, y2 in pixels; m may be 0 and differs between images.
        labels: For each image ``(m,)``, integers.
        max_boxes: M, the number of places of an image.

    Returns:
        Boxes ``(N, M, 4)``, float32, and labels ``(N, M)``, int64, with label -1 and an empty box where nothing is.

    Raises:
        PrivacyConfigError: ``max_boxes`` is less than 1.
        ValueError: An image has more boxes than places, or other numbers of boxes and labels.
    """
    if max_boxes < 1:
        raise PrivacyConfigError(f"max_boxes={max_boxes}: an image needs at least one place for an object.")
    if len(boxes) != len(labels):
        raise ValueError(f"boxes of {len(boxes)} images and labels of {len(labels)}: give one of each for every image.")
    all_boxes = torch.zeros(len(boxes), max_boxes, 4)
    all_labels = torch.full((len(boxes), max_boxes), PADDING, dtype=torch.int64)
    for i, (one, label) in enumerate(zip(boxes, labels, strict=True)):
        found = torch.as_tensor(one, dtype=torch.float32).reshape(-1, 4)
        if len(found) != len(label):
            raise ValueError(f"image {i} has {len(found)} boxes and {len(label)} labels: every box needs one label.")
        if len(found) > max_boxes:
            raise ValueError(
                f"image {i} has {len(found)} boxes, there are places for {max_boxes}: raise max_boxes (it is public, so give "
                "a bound that holds for any image), or leave the smallest boxes out."
            )
        all_boxes[i, : len(found)] = found
        all_labels[i, : len(found)] = torch.as_tensor(label)
    return all_boxes, all_labels


def check_targets(boxes: Tensor, labels: Tensor, num_classes: int, height: int, width: int) -> None:
    """Look for targets that no image can have; one comparison for a whole batch if all is well.

    Args:
        boxes: ``(N, M, 4)``, x1, y1, x2, y2 in pixels.
        labels: ``(N, M)``, -1 where nothing is.
        num_classes: Number of classes.
        height: Height of the images.
        width: Their width.

    Raises:
        ValueError: naming the first image and box at fault, and the fix.
    """
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or labels.shape != boxes.shape[:2]:
        raise ValueError(
            f"boxes must be (N, M, 4) and labels (N, M), got {tuple(boxes.shape)} and {tuple(labels.shape)}: pad_targets "
            "makes them from lists."
        )
    there = labels != PADDING
    unknown = there & ((labels < 0) | (labels >= num_classes))
    x1, y1, x2, y2 = boxes.unbind(-1)
    outside = there & ((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height) | ~torch.isfinite(boxes).all(-1))
    flat = there & ((x2 <= x1) | (y2 <= y1))
    if not bool((unknown | outside | flat).any()):
        return
    image, place = (int(i) for i in (unknown | outside | flat).nonzero()[0])
    box = tuple(round(float(value), 2) for value in boxes[image, place])
    where = f"image {image} of the batch, box {place}"
    if bool(unknown[image, place]):
        raise ValueError(
            f"{where}: label {int(labels[image, place])} is outside 0 .. {num_classes - 1}. Count classes from 0, raise "
            f"num_classes, or use {PADDING} for a place without an object."
        )
    if bool(flat[image, place]):
        raise ValueError(
            f"{where}: {box} has no area. Boxes are (x1, y1, x2, y2) in pixels with x1 < x2 and y1 < y2; from (x, y, width, "
            "height) make them by torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')."
        )
    raise ValueError(
        f"{where}: {box} reaches outside the image of {width} x {height} pixels (width x height). Cut it at the border "
        "(torchvision.ops.clip_boxes_to_image), or scale boxes together with their image."
    )

"""Which cell of the grid answers for which box."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dp.models.detection.padding import PADDING

__all__ = ("Assignment", "assign", "cell_centres")


class Assignment(NamedTuple):
    """What each of the K cells of each image should say.

    Attributes:
        labels: Class, ``(N, K)``; -1 for an empty cell.
        boxes: Box, ``(N, K, 4)``, x1, y1, x2, y2 in pixels; a box of one pixel for an empty cell.
    """

    labels: Tensor
    boxes: Tensor


def cell_centres(rows: int, columns: int, stride: int, like: Tensor) -> Tensor:
    """Centres (x, y) of the cells in pixels, row by row, ``(rows * columns, 2)``, on the device of ``like``."""
    y = (torch.arange(rows, device=like.device, dtype=torch.float32) + 0.5) * stride
    x = (torch.arange(columns, device=like.device, dtype=torch.float32) + 0.5) * stride
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)


def assign(boxes: Tensor, labels: Tensor, rows: int, columns: int, stride: int, radius: float = 1.0) -> Assignment:
    """The cells around a box's centre answer for it; where boxes compete, the smallest one wins.

    A cell is around the centre if its own centre lies in the box and within ``radius`` cells of the box's (centre sampling,
    FCOS), or if it holds the box's centre, so that no box is without a cell of its own unless a smaller one took it. Each
    image is assigned by itself.

    Args:
        boxes: ``(N, M, 4)``, x1, y1, x2, y2 in pixels.
        labels: ``(N, M)``, -1 where nothing is.
        rows: Rows of the grid.
        columns: Columns of the grid.
        stride: Pixels between cells.
        radius: In cells.
    """
    centres = cell_centres(rows, columns, stride, boxes)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    far = (centres - middle[:, :, None]).abs().amax(-1)  # (N, M, K), in the largest coordinate
    inside = ((centres > boxes[:, :, None, :2]) & (centres < boxes[:, :, None, 2:])).all(-1)
    last = torch.tensor([columns - 1, rows - 1], device=boxes.device)
    column, row = torch.minimum((middle / stride).long(), last).unbind(-1)
    own = (row * columns + column)[..., None] == torch.arange(rows * columns, device=boxes.device)
    candidate = (own | (inside & (far < radius * stride))) & (labels != PADDING)[..., None]
    size = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    cost = torch.where(candidate, size[..., None], torch.inf)
    area, winner = cost.min(1)  # (N, K)
    empty = torch.isinf(area)
    of_cell = torch.where(empty, PADDING, labels.gather(1, winner))
    box = boxes.gather(1, winner[..., None].expand(-1, -1, 4))
    return Assignment(of_cell, torch.where(empty[..., None], box.new_tensor([0.0, 0.0, 1.0, 1.0]), box))

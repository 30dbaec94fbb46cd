"""Scores in cells of equal width in log odds: a fixed-size stand-in for a sorted list, that adds up over ranks.

Measures of the order of scores (AUROC, equal-mass bins, risk against coverage) need all scores. Kept in cells they need a
fixed number of sums instead, whose total over batches and ranks is the same whatever the split. Scores that share a cell
are treated as ties; how much that can matter is computed from the cells and stated beside the measure.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ("CELLS", "Device", "add_up", "cells", "lower_edges")

#: Where a tensor lives; None is the CPU.
Device = torch.device | None

#: Number of cells. With log odds from -20 to 20 a cell is 0.01 wide: 0.0024 in probability at one half, finer towards the
#: ends, where confidences crowd.
CELLS = 4096
_LIMIT = 20.0


def cells(scores: Tensor) -> Tensor:
    """The cells of scores in [0, 1]: int64 of the same shape, rising with the score.

    Single precision is enough, and half the work: it moves log odds by 2e-6, a cell is 0.01 wide. What is coarser is widened.
    """
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    odds = torch.log(scores).sub_(torch.log1p(-scores))  # -inf at 0 and inf at 1: the outermost cells
    place = odds.clamp_(-_LIMIT, _LIMIT).add_(_LIMIT).mul_(CELLS / (2 * _LIMIT)).long()
    return place.clamp_(max=CELLS - 1)


def add_up(index: Tensor, values: Tensor, into: Tensor) -> Tensor:
    """Adds rows of ``values`` (n, ...) to the rows ``index`` (n,) of ``into`` (size, ...), in place; returns ``into``."""
    return into.index_add_(0, index, values.to(into.dtype))


def lower_edges() -> Tensor:
    """The lowest score of each cell: (CELLS,) float64, rising from 0."""
    edges = torch.sigmoid(torch.arange(CELLS, dtype=torch.float64) * (2 * _LIMIT / CELLS) - _LIMIT)
    edges[0] = 0.0
    return edges

"""How well scores rank: the area under the ROC curve, from scores in cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, z_score

__all__ = ("aurocs_from_cells",)


def aurocs_from_cells(counts: Tensor, confidence: float = 0.95) -> list[tuple[Estimate, float, float]]:
    """Areas under ROC curves with DeLong's interval (DeLong et al. 1988), from counts by ordered cells.

    An area is the chance that a positive scores above a negative, ties counting one half. Scores in one cell count as ties,
    so it can be off by at most half the share of pairs that meet in a cell.

    Args:
        counts: (groups, cells, 2) numbers of negatives and positives, in rising order of the score.
        confidence: level of the interval; there is none if the variance is 0, as in a perfect ranking.

    Returns:
        For each group the area (NaN with its reason if there is one class only), the largest error of the cells, and the
        standard error (NaN without an interval).
    """
    by_class = counts.double()
    negatives, positives = by_class[..., 0], by_class[..., 1]
    n, p = negatives.sum(-1, keepdim=True), positives.sum(-1, keepdim=True)
    below = (negatives.cumsum(-1) - 0.5 * negatives) / n  # for a positive in each cell: share of negatives below it
    above = (p - positives.cumsum(-1) + 0.5 * positives) / p  # for a negative: share of positives above it
    area = (positives * below).sum(-1, keepdim=True) / p
    error = 0.5 * (negatives * positives).sum(-1, keepdim=True) / (n * p)
    spread = [
        (weights * (parts - area).square()).sum(-1, keepdim=True) / (size - 1).clamp(min=1) / size * (size > 1)
        for weights, parts, size in ((positives, below, p), (negatives, above, n))
    ]
    columns = torch.cat([n, p, area, error, (spread[0] + spread[1]).sqrt()], -1).tolist()
    return [_estimate(row, z_score(confidence)) for row in columns]


def _estimate(row: list[float], z: float) -> tuple[Estimate, float, float]:
    n, p, area, error, deviation = row
    total = int(n + p)
    if n == 0 or p == 0:
        reason = "no samples" if total == 0 else ("no positives" if p == 0 else "no negatives")
        return Estimate(math.nan, n=total, reason=reason), math.nan, math.nan
    if deviation == 0.0 or min(n, p) < 2:
        return Estimate(area, n=total), error, math.nan
    return Estimate(area, max(0.0, area - z * deviation), min(1.0, area + z * deviation), total), error, deviation

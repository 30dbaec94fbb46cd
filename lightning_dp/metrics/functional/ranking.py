"""How well scores rank: the area under the ROC curve, from scores in cells."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, z_score

__all__ = ("auroc_from_cells",)


def auroc_from_cells(counts: Tensor, confidence: float = 0.95) -> tuple[Estimate, float, float]:
    """Area under the ROC curve with DeLong's interval (DeLong et al. 1988), from counts by ordered cells.

    It is the chance that a positive scores above a negative, ties counting one half. Scores in one cell count as ties, so
    the area can be off by at most half the share of pairs that meet in a cell.

    Args:
        counts: (cells, 2) numbers of negatives and positives, in rising order of the score.
        confidence: level of the interval; there is none if the variance is 0, as in a perfect ranking.

    Returns:
        The area (NaN with its reason if there is one class only), the largest error of the cells, and the standard
        error (NaN without an interval).
    """
    counts = counts[counts.sum(1) > 0].double()
    n, p = float(counts[:, 0].sum()), float(counts[:, 1].sum())
    if n == 0 or p == 0:
        reason = "no samples" if n + p == 0 else ("no positives" if p == 0 else "no negatives")
        return Estimate(math.nan, n=int(n + p), reason=reason), math.nan, math.nan
    negatives, positives = counts[:, 0], counts[:, 1]
    below = (negatives.cumsum(0) - 0.5 * negatives) / n  # for a positive in each cell: share of negatives below it
    above = (p - positives.cumsum(0) + 0.5 * positives) / p  # for a negative: share of positives above it
    area = float((positives * below).sum() / p)
    error = 0.5 * float((negatives * positives).sum()) / (n * p)
    variance = 0.0
    for weights, parts, size in ((positives, below, p), (negatives, above, n)):
        if size > 1:
            variance += float((weights * (parts - area).square()).sum()) / (size - 1) / size
    deviation = math.sqrt(variance)
    if variance == 0.0 or min(n, p) < 2:
        return Estimate(area, n=int(n + p)), error, math.nan
    half = z_score(confidence) * deviation
    return Estimate(area, max(0.0, area - half), min(1.0, area + half), int(n + p)), error, deviation

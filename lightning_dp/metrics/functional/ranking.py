"""How well scores rank: the area under the ROC curve, from scores or from scores in cells."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, z_score

__all__ = ("aurocs_from_cells", "delong_auroc")


def delong_auroc(scores: ArrayLike | Tensor, targets: ArrayLike | Tensor, confidence: float = 0.95) -> Estimate:
    """The area under the ROC curve of one model with DeLong's interval (DeLong et al. 1988), in closed form.

    With the placement values ``V_i``, the share of negatives that score below positive i, and ``W_j``, the share of positives
    that score above negative j (ties as half), the area is the mean of either, and its variance
    ``Var(V) / m + Var(W) / n`` over m positives and n negatives. Equal scores are counted together, so that it takes a sort and
    not m n comparisons. The interval is ``area +- z * sd``, cut at 0 and 1: too short near 1, and not there at all for a
    perfect ranking, whose estimated variance is 0. To compare two models on the same samples use :func:`compare_auroc`.

    Args:
        scores: ``(N,)``, larger for the positive class; only their order matters.
        targets: ``(N,)``, 0 or 1.
        confidence: level of the interval.

    Returns:
        The area and its interval, with N; NaN and a reason where there is one class only.

    Raises:
        ValueError: different or other shapes, targets other than 0 and 1, or scores that are NaN.

    Example:
        >>> print(delong_auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]))
        0.750 [0.057, 1.000]
    """
    values, found = (
        t.detach().cpu() if isinstance(t, Tensor) else torch.as_tensor(np.asarray(t)) for t in (scores, targets)
    )
    if values.dim() != 1 or values.shape != found.shape:
        raise ValueError(
            f"scores of the shape {tuple(values.shape)} for targets {tuple(found.shape)}: both must be (N,), one a sample."
        )
    if bool(values.isnan().any()) or not bool(((found == 0) | (found == 1)).all()):
        raise ValueError("scores must not be NaN, and targets must be 0 or 1.")
    distinct, cell = torch.unique(values, return_inverse=True)
    counts = torch.zeros(1, max(len(distinct), 1), 2, dtype=torch.float64)
    if len(values):
        counts.view(-1).index_add_(0, 2 * cell + found.long(), torch.ones(len(values), dtype=torch.float64))
    ((estimate, _, _),) = aurocs_from_cells(counts, confidence)
    return estimate


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

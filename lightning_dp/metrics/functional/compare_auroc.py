"""Is one model's AUROC better than another's, on the same samples? By redrawing the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ("AUROCComparison", "compare_auroc")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AUROCComparison:
    """Two models on the same samples.

    Attributes:
        first: AUROC of the first model for each label, ``(labels,)``; NaN for a label without both kinds.
        second: of the second.
        first_interval: percentile interval of each label, ``(labels, 2)``.
        second_interval: of the second.
        p: share of redraws in which the first is not above the second, ``(labels,)``: one-sided, small if the first is better.
        p_mean: the same of the mean over labels.
    """

    first: Array
    second: Array
    first_interval: Array
    second_interval: Array
    p: Array
    p_mean: float


def compare_auroc(
    first: ArrayLike,
    second: ArrayLike,
    targets: ArrayLike,
    n_boot: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AUROCComparison:
    """Paired bootstrap of the AUROC of two models, as in the code of Tayebi Arasteh et al. (arXiv 2302.01622).

    The samples are drawn anew with replacement, the same ones for both models and all labels. Ties between the two count as
    half, where that code counts them wholly against the first; identical models then get 1/2 and not 1.

    Args:
        first: scores, ``(n,)`` or ``(n, labels)``; only their order matters.
        second: scores of the other model.
        targets: 0 or 1, in the same shape.
        n_boot: redraws.
        confidence: of the intervals.
        seed: of the redraws.

    Raises:
        ValueError: different shapes, targets other than 0 and 1, NaN, or no redraws.
    """
    a, b, y = (np.asarray(x, dtype=np.float64).reshape(len(np.asarray(x)), -1) for x in (first, second, targets))
    if not a.shape == b.shape == y.shape:
        raise ValueError(f"scores of the shapes {a.shape} and {b.shape} for targets {y.shape}: they must be the same.")
    if np.isnan(a).any() or np.isnan(b).any() or not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("scores must not be NaN, and targets must be 0 or 1.")
    if n_boot < 1 or not 0 < confidence < 1:
        raise ValueError(f"n_boot={n_boot} must be at least 1 and confidence={confidence} in (0, 1).")
    rng = np.random.default_rng(seed)
    places = [[np.unique(column, return_inverse=True)[1] for column in scores.T] for scores in (a, b)]

    def areas(times: Array) -> Array:
        return np.array([[_auroc(*pair, times) for pair in zip(one, y.T, strict=True)] for one in places])

    value = areas(np.ones(len(y)))
    drawn = np.empty((2, n_boot, y.shape[1]))
    for number in range(n_boot):
        index = rng.integers(len(y), size=len(y))
        drawn[:, number] = areas(np.bincount(index, minlength=len(y)).astype(np.float64))
    with np.errstate(invalid="ignore"):
        lost = np.where(np.isnan(drawn[0] - drawn[1]), np.nan, (drawn[0] < drawn[1]) + 0.5 * (drawn[0] == drawn[1]))
    known = ~np.isnan(drawn[0] - drawn[1]).any(0)
    means = drawn[:, :, known].mean(2) if known.any() else np.full((2, n_boot), np.nan)
    ends = (0.5 - confidence / 2, 0.5 + confidence / 2)
    intervals = [np.quantile(one, ends, axis=0).T for one in drawn]
    p_mean = float(((means[0] < means[1]) + 0.5 * (means[0] == means[1])).mean()) if known.any() else float("nan")
    return AUROCComparison(value[0], value[1], intervals[0], intervals[1], lost.mean(0), p_mean)


def _auroc(places: NDArray[np.int64], targets: Array, times: Array) -> float:
    """Chance that a positive ranks above a negative, a tie as half, each sample counted so many times; NaN without a kind."""
    positives, negatives = (np.bincount(places, weights=times * kind) for kind in (targets, 1 - targets))
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / pairs) if pairs else float("nan")

"""Numbers on slice weights: the rank of a known slice, and how far two rankings agree. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("slice_ranks", "spearman", "top_k_overlap")


def slice_ranks(weights: Tensor, slices: Tensor) -> Tensor:
    """The rank of one known slice in each row of weights: 1 for the largest weight.

    Ties count against it: with equal weights everywhere it is last, so that weights that say nothing rank nothing.

    Args:
        weights: ``(N, S)``.
        slices: index of the slice in each row, int64 ``(N,)``.

    Returns:
        int64 ``(N,)``, from 1 to S.
    """
    own = weights.gather(1, slices.unsqueeze(1))
    return (weights >= own).sum(1)


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of each row of one with that row of the other, ties by their mean rank.

    Args:
        one: ``(N, S)``.
        other: ``(N, S)``.

    Returns:
        ``(N,)``; NaN where a row holds one value only.
    """
    a, b = (_mean_ranks(values) for values in (one, other))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    correlation: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return correlation


def top_k_overlap(one: Tensor, other: Tensor, k: int) -> Tensor:
    """The share of the k largest entries of each row that is among the k largest of the other: ``(N,)`` in [0, 1].

    By chance it is k / S on average.

    Raises:
        PrivacyConfigError: for k outside 1 to S.
    """
    if not 1 <= k <= one.shape[1]:
        raise PrivacyConfigError(f"k={k} of {one.shape[1]} slices; choose from 1 to {one.shape[1]}.")
    chosen = [torch.zeros_like(v, dtype=torch.bool).scatter_(1, v.topk(k, dim=1).indices, True) for v in (one, other)]
    return (chosen[0] & chosen[1]).sum(1) / k


def _mean_ranks(values: Tensor) -> Tensor:
    below = (values.unsqueeze(2) > values.unsqueeze(1)).sum(2)
    equal = (values.unsqueeze(2) == values.unsqueeze(1)).sum(2)
    ranks: Tensor = below + (equal + 1) / 2
    return ranks

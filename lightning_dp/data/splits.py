"""Seeded stratified splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_dp.errors import PrivacyConfigError

__all__ = ("stratified_split",)


def stratified_split(
    labels: NDArray[np.int64], held_out: int, seed: int, argument: str = "a number"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split ``0 .. n-1``; the held-out part has the class proportions of the whole, to within one sample a class.

    The split is a function of the labels and the seed. It reads private labels, but only decides which samples are
    *not* trained on; nothing about it is released.

    Args:
        labels: Class of each sample, ``(n,)``.
        held_out: Number of samples to hold out, ``0 <= held_out < n``.
        seed: Seed of the shuffle.
        argument: What the user calls the number, for the message.

    Returns:
        Sorted indices of the kept and of the held-out samples, int64.

    Raises:
        PrivacyConfigError: if ``held_out`` leaves nothing to train on.
    """
    n = len(labels)
    if not 0 <= held_out < n:
        raise PrivacyConfigError(
            f"Cannot hold out {held_out} of {n} samples, so that some are left to train on; choose {argument} from 0 to "
            f"{n - 1}."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    classes = labels[order]
    # Rank of each sample within its class, as a fraction: taking the smallest fractions takes the same share of every
    # class.
    fraction = np.empty(n)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = np.argsort(fraction, kind="stable")[:held_out]
    held = np.zeros(n, dtype=bool)
    held[order[chosen]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)

"""What is on each tray: the classes dealt to images so that all counts of the data set come out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.food.classes import FOOD_CLASSES, NUM_IMAGES
from lightning_dp.errors import PrivacyConfigError

__all__ = ("counts_for", "deal")

_FEWEST = 10


def counts_for(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images and boxes of each class among ``n`` images, in the data set's proportions, at least one of each.

    Raises:
        PrivacyConfigError: Fewer than ten images, which cannot show fifteen classes in these proportions.
    """
    if n < _FEWEST:
        raise PrivacyConfigError(f"{n} scenes are too few for the proportions of 15 classes: take {_FEWEST} or more.")
    images = np.array([max(1, round(one.images * n / NUM_IMAGES)) for one in FOOD_CLASSES])
    boxes = np.array([round(one.boxes * n / NUM_IMAGES) for one in FOOD_CLASSES])
    return images, np.maximum(images, boxes)


def deal(n: int, max_boxes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many objects of each class each image shows, ``(n, 15)``.

    Every image shows something; each class is in as many images and has as many boxes as :func:`counts_for` says.

    Args:
        n: Number of images.
        max_boxes: Most objects of one image.
        rng: Decides.

    Raises:
        PrivacyConfigError: The objects do not fit into so few places.
    """
    images, boxes = counts_for(n)
    counts = np.zeros((n, len(images)), dtype=np.int64)
    showings = rng.permutation(np.repeat(np.arange(len(images)), images))
    counts[np.arange(n), showings[:n]] = 1
    for label, more in enumerate(images - counts.sum(0)):
        free = np.flatnonzero((counts[:, label] == 0) & (counts.sum(1) < max_boxes))
        counts[_some(free, more, rng), label] = 1
    for label, more in enumerate(boxes - images):
        shown = np.flatnonzero(counts[:, label])
        for _ in range(more):
            free = shown[counts[shown].sum(1) < max_boxes]
            counts[_some(free, 1, rng), label] += 1
    return counts


def _some(free: NDArray[np.int64], many: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if len(free) < many:
        raise PrivacyConfigError(
            "the objects do not fit: raise max_boxes, of which 12 are enough for any number of images."
        )
    chosen: NDArray[np.int64] = rng.choice(free, many, replace=False)
    return chosen

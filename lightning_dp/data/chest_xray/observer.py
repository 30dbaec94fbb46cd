"""The planted unfairness, and what it costs a group when nothing else goes wrong: the accuracy of an ideal observer.

A finding is a pattern added to a picture with white noise, so that an observer who knows the patient's anatomy, and where
and how large the finding would be, decides on one number: the match with the pattern, which is N(0, 1) without the finding
and N(d, 1) with it, d the norm of the pattern over the noise. In the group that is treated unfairly a finding is drawn with
less contrast, in some pictures: there it is N(contrast d, 1). The best decision on that number has a known accuracy. No
detector is more accurate; one that misses nothing that can be seen comes close, and then the difference between the groups is
the planted one, whatever the detector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from lightning_dp.errors import PrivacyConfigError

__all__ = ("FaintFindings", "ideal_accuracy", "parity_differences")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FaintFindings:
    """An unfairness to plant: in one group, findings are there and hardly show.

    Args:
        attribute: ``"sex"`` or ``"age"``.
        level: the group, ``"female"`` for example.
        share: chance that a finding of this group is drawn faintly, in [0, 1]; each finding of each picture by itself.
        contrast: its strength then, over the usual one, in [0, 1]. 0: the picture shows nothing of it.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    attribute: str = "sex"
    level: str = "female"
    share: float = 0.6
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("contrast", self.contrast)):
            if not 0.0 <= value <= 1.0:
                raise PrivacyConfigError(f"FaintFindings({name}={value!r}): give a number from 0 to 1.")


def ideal_accuracy(strength: Array, prevalence: Array, share: Array, contrast: float) -> tuple[Array, Array]:
    """How often the ideal observer is right about a finding that is absent, and about one that is there.

    It decides for the finding where ``prevalence`` f1(s) > (1 - ``prevalence``) f0(s), with s the match with the pattern,
    f0 = N(0, 1) and f1 = (1 - share) N(d, 1) + share N(contrast d, 1). The likelihood ratio rises with s, so that this is a
    threshold on s.

    Args:
        strength: d > 0, of any shape.
        prevalence: of the finding, in (0, 1); broadcast.
        share: of faint ones; broadcast.
        contrast: of faint ones.

    Returns:
        P(right | absent), P(right | present), in the shape of the arguments together.
    """
    d, p, q = np.broadcast_arrays(strength, prevalence, share)
    wanted = np.log1p(-p) - np.log(p)
    low, high = np.full(d.shape, -60.0), d + 60.0

    def log_ratio(s: Array) -> Array:
        with np.errstate(divide="ignore"):  # log 0 where no finding, or every finding, is faint
            sharp = np.log1p(-q) + d * s - d**2 / 2
            faint = np.log(q) + contrast * d * s - (contrast * d) ** 2 / 2
        ratio: Array = np.logaddexp(sharp, faint)
        return ratio

    for _ in range(80):
        middle = (low + high) / 2
        above = log_ratio(middle) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    threshold = (low + high) / 2
    present = (1 - q) * ndtr(d - threshold) + q * ndtr(contrast * d - threshold)
    return ndtr(threshold), present


def parity_differences(accuracy: Array, groups: NDArray[np.int64], number: int) -> list[float]:
    """Of each group, its mean accuracy minus that of all other samples; NaN where either has no samples.

    Args:
        accuracy: of each sample, ``(n,)``.
        groups: of each sample, ``(n,)``.
        number: of groups.
    """
    sizes = np.bincount(groups, minlength=number)
    sums = np.bincount(groups, weights=accuracy, minlength=number)
    found = []
    for size, total in zip(sizes.tolist(), sums.tolist(), strict=True):
        others = len(groups) - size
        found.append(total / size - (float(sums.sum()) - total) / others if size and others else math.nan)
    return found

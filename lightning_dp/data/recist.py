"""Response to therapy by RECIST 1.1, from the sums of the target lesions' diameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_dp.errors import PrivacyConfigError

__all__ = ("DISEASE_CONTROL", "RESPONDERS", "RecistCategory", "recist", "responders")

RecistCategory: TypeAlias = Literal["CR", "PR", "SD", "PD"]
RESPONDERS: tuple[RecistCategory, ...] = ("CR", "PR")
DISEASE_CONTROL: tuple[RecistCategory, ...] = ("CR", "PR", "SD")
_TOLERANCE = 1e-9  # relative, of sums of decimal millimetres in binary: 70.0 / 100.0 is a decrease of 30 %


def recist(baseline: ArrayLike, nadir: ArrayLike, current: ArrayLike) -> NDArray[np.str_]:
    """Category of the target lesions (Eisenhauer et al. 2009, Eur J Cancer 45, section 4.3.1).

    CR, complete response: no lesion is left. PD, progressive disease: the sum rose by at least 20 % **and** at least 5 mm over
    its smallest value so far. PR, partial response: it fell by at least 30 % from baseline. SD, stable disease: none of them.
    Progression is looked for before partial response: a sum that has risen again progresses, however far it is below baseline.
    Lymph nodes (which count as gone below 10 mm), other lesions and new ones are outside this function.

    Args:
        baseline: sum of diameters before therapy, in millimetres, positive.
        nadir: smallest sum so far, baseline included; baseline at the first look.
        current: the sum now.

    Returns:
        "CR", "PR", "SD" or "PD" for each element of the broadcast arguments.

    Raises:
        PrivacyConfigError: for sums that are not finite or negative, a baseline of 0, or a nadir above the baseline.
    """
    base, low, now = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (baseline, nadir, current)))
    for name, values in (("baseline", base), ("nadir", low), ("current", now)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise PrivacyConfigError(
                f"{name} holds a sum of diameters that is negative or no number: give millimetres."
            )
    if (base == 0).any():
        raise PrivacyConfigError("a baseline sum is 0 mm: without a measurable lesion there is no RECIST response.")
    if (low > base).any():
        raise PrivacyConfigError("a nadir exceeds its baseline: it is the smallest sum so far, the baseline included.")
    slack = _TOLERANCE * base
    progressed = (now - low >= 0.2 * low - slack) & (now - low >= 5 - slack)
    partial = base - now >= 0.3 * base - slack
    return np.select([now == 0, progressed, partial], ["CR", "PD", "PR"], "SD").astype(np.str_)


def responders(categories: ArrayLike, definition: Collection[RecistCategory] = RESPONDERS) -> NDArray[np.int64]:
    """1 for each category that the definition counts as a response, else 0.

    Args:
        categories: as from :func:`recist`.
        definition: ``RESPONDERS`` (objective response), ``DISEASE_CONTROL`` (stable disease too), or one's own.

    Raises:
        PrivacyConfigError: for a name that is no category.
    """
    found = np.asarray(categories, dtype=np.str_)
    known = get_args(RecistCategory)
    if unknown := sorted({*found.ravel().tolist(), *definition} - set(known)):
        raise PrivacyConfigError(f"{unknown} are no RECIST categories; these are {', '.join(known)}.")
    return np.isin(found, list(definition)).astype(np.int64)

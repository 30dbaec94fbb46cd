"""Distances between the rates of groups, with bootstrap intervals drawn from counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lightning_dp.metrics.estimate import Estimate
from lightning_dp.metrics.functional.fairness_result import Gap

__all__ = ("Rates", "difference_to_others", "gap", "percentile_interval", "worse_gap")

Array = npt.NDArray[np.float64]

#: Above this share of bootstrap draws without a value no interval is given.
_MAX_LOST = 0.1


@dataclass(frozen=True)
class Rates:
    """One rate in every group.

    Attributes:
        values: (groups,), NaN where the denominator is 0.
        denominators: (groups,) counts behind the values.
        draws: (draws, groups) bootstrap replicates of the values.
        missing: why a value is NaN, "no positives" for example.
    """

    values: Array
    denominators: Array
    draws: Array
    missing: str


def percentile_interval(draws: Array, confidence: float) -> tuple[float, float]:
    """Percentiles of the draws that have a value.

    (NaN, NaN) if there are none, if more than a tenth have no value, or if all are the same: rates of exactly 0 or 1 are
    drawn again and again as they are, which says nothing about how sure they are.
    """
    kept = draws[~np.isnan(draws)]
    if len(kept) == 0 or len(kept) < (1 - _MAX_LOST) * len(draws):
        return math.nan, math.nan
    if kept.min() == kept.max():
        return math.nan, math.nan
    # Draws, not points between them: a ratio may be drawn over 0, and its interval is then open above.
    low = np.quantile(kept, 0.5 - 0.5 * confidence, method="lower")
    high = np.quantile(kept, 0.5 + 0.5 * confidence, method="higher")
    return float(low), float(high)


def gap(
    name: str,
    outcome: str,
    rates: Rates,
    groups: Sequence[str],
    kind: Literal["difference", "ratio"],
    min_count: int,
    confidence: float,
) -> Gap:
    """Highest minus lowest rate, or lowest over highest, over the groups with at least ``min_count`` samples behind theirs.

    A gap is NaN with its reason if a group that takes part has no rate, if fewer than two groups take part, or, for a
    ratio, if all rates are 0.

    The interval is that of the two groups found highest and lowest: highest minus lowest may fall below 0 in a draw, and an
    interval that holds 0 (or a ratio's that holds 1) is compatible with no gap between these two. (Draws of the maximum
    minus the minimum would never be below 0, and lie above the value where groups are many and small.) The two were picked
    after the fact, so with many groups the interval still makes gaps look surer than they are.
    """
    taken = rates.denominators >= min_count
    left_out = tuple(g for g, t in zip(groups, taken, strict=True) if not t)
    taken_names = [g for g, t in zip(groups, taken, strict=True) if t]
    values = rates.values[taken]
    if len(values) < 2:
        reason = f"fewer than two groups with at least {min_count} samples" if min_count else "needs two groups"
        return Gap(name, outcome, math.nan, left_out=left_out, reason=reason)
    absent = [g for g, v in zip(taken_names, values, strict=True) if math.isnan(v)]
    if absent:
        return Gap(name, outcome, math.nan, left_out=left_out, reason=f"{rates.missing} in {', '.join(absent)}")
    top, bottom = int(values.argmax()), int(values.argmin())
    if top == bottom:  # all equal
        bottom = (top + 1) % len(values)
    high_draws, low_draws = rates.draws[:, taken][:, top], rates.draws[:, taken][:, bottom]
    if kind == "difference":
        value, spread = values[top] - values[bottom], high_draws - low_draws
    elif values[top] == 0:
        return Gap(name, outcome, math.nan, left_out=left_out, reason="the rate is 0 in every group")
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            value, spread = values[bottom] / values[top], low_draws / high_draws
    interval = percentile_interval(spread, confidence)
    return Gap(name, outcome, float(value), *interval, taken_names[top], taken_names[bottom], left_out)


def worse_gap(name: str, first: Gap, second: Gap) -> Gap:
    """The larger of two differences, as in equalised odds, with its interval; NaN where one of them is."""
    left_out = tuple(dict.fromkeys(first.left_out + second.left_out))
    for one in (first, second):
        if math.isnan(one.value):
            return Gap(name, first.outcome, math.nan, left_out=left_out, reason=one.reason)
    worse = first if first.value >= second.value else second
    return Gap(name, first.outcome, worse.value, worse.low, worse.high, worse.highest, worse.lowest, left_out)


def difference_to_others(rates: Rates, sizes: Array, n: Sequence[int], confidence: float) -> list[Estimate]:
    """Each group's rate minus the size-weighted rate of all others together, signed, with a bootstrap interval."""
    found = []
    with np.errstate(invalid="ignore", divide="ignore"):
        hits, hit_draws = np.nan_to_num(rates.values) * sizes, np.nan_to_num(rates.draws) * sizes
        for g, size in enumerate(sizes):
            others = sizes.sum() - size
            if size == 0 or others == 0:
                reason = rates.missing if size == 0 else "no samples in any other group"
                found.append(Estimate(math.nan, n=n[g], reason=reason))
                continue
            value = rates.values[g] - (hits.sum() - hits[g]) / others
            draws = rates.draws[:, g] - (hit_draws.sum(1) - hit_draws[:, g]) / others
            found.append(Estimate(float(value), *percentile_interval(draws, confidence), n=n[g]))
    return found

"""Which way to a layer's norms costs least: a model in multiply-adds a unit, fitted to measurements."""

from __future__ import annotations

from typing import Literal

__all__ = ("Route", "cheapest", "route_costs")

Route = Literal["direct", "gram", "held", "streamed"]

TOUCH = 20  # handling held gradients (write, norm, sum) costs as much as this many multiply-adds an element
TOUCH_CACHED = 15  # the same where they fit the last-level cache
CACHE = 1 << 22  # elements
BUILD = 20  # the same where the gradients are written and read once, in cache
UNFOLD = 6  # copying one element of a patch


def route_costs(length: int, d: int, p: int, *, units: int = 1, unfolds: bool = False) -> dict[Route, float]:
    """The cost for one unit, norm and weighted sum together, of each route.

    Args:
        length: positions T that a unit's gradient sums over.
        d: inputs to each output: features, or elements of a patch.
        p: outputs.
        units: how many units' gradients are held together.
        unfolds: whether patches have to be copied for Gram matrices (convolutions).
    """
    product, touched = length * d * p, d * p
    unfold = UNFOLD * length * d if unfolds else 0
    return {
        "gram": length**2 * (d + p) + product + unfold,
        "held": product + (TOUCH_CACHED if units * touched <= CACHE else TOUCH) * touched,
        "streamed": 2 * product + BUILD * touched,
    }


def cheapest(length: int, d: int, p: int, *, units: int = 1, may_hold: bool = True, unfolds: bool = False) -> Route:
    """The route of least cost; ``may_hold``: gradients may be kept from the norm to the sum."""
    if length == 1 and not unfolds:
        return "direct"
    costs = route_costs(length, d, p, units=units, unfolds=unfolds)
    if not may_hold:
        del costs["held"]
    return min(costs, key=lambda route: costs[route])

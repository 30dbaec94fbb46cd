"""Which way to a layer's norms costs least: a model in multiply-adds a unit, fitted to measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ("GRAM", "UNFOLD", "Route", "cheapest", "route_costs")

Route = Literal["direct", "gram", "held", "streamed"]

GRAM = 1.5  # a multiply-add of these products, smaller and less even than those of a weight gradient
TOUCH = 45  # handling one element of held gradients (write, norm, sum)
TOUCH_CACHED = 25  # the same where they fit the last-level cache
CACHE = 1 << 22  # elements
BUILD = 25  # the same where gradients are written and read once, in cache
UNFOLD = 80  # copying one element of a patch, and reading it


def route_costs(
    length: int, d: int, p: int, *, units: int = 1, gram: float | None = None, build: float = 0.0
) -> dict[Route, float]:
    """The cost for one unit, norm and weighted sum together, of each route.

    Args:
        length: positions T that a unit's gradient sums over.
        d: inputs to each output: features, or elements of a patch.
        p: outputs.
        units: how many units' gradients are held together.
        gram: what the Gram matrix of the inputs costs, ``None``: T^2 d products.
        build: what building a unit's gradient costs besides its products and handling it.
    """
    product, touched = length * d * p, d * p
    return {
        "gram": (GRAM * length**2 * d if gram is None else gram) + GRAM * length**2 * p + product,
        "held": product + (TOUCH_CACHED if units * touched <= CACHE else TOUCH) * touched + build,
        "streamed": 2 * product + BUILD * touched + build,
    }


def cheapest(costs: Mapping[Route, float], *, may_hold: bool = True) -> Route:
    """The route of least cost; ``may_hold``: gradients may be kept from the norm to the sum."""
    return min((route for route in costs if may_hold or route != "held"), key=lambda route: costs[route])

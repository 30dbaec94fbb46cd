"""The privacy profile of one pass over balls-in-bins batches, from above and in both directions.

Each unit falls into one of t steps of a pass, uniformly and independently. Without the unit the noise of the steps is
z ~ N(0, sigma^2 I_t); with it, z has moved by one coordinate vector e_i, i uniform. This pair dominates the pass (Chua et
al. 2024, arXiv 2412.16802; a proof is in :class:`~lightning_dp.sampling.BallsInBinsSampler`). The likelihood ratio of the
second to the first is a mean of independent log-normals,

    A = (1/t) sum_i X_i,    X_i = exp(z_i / sigma^2 - 1 / (2 sigma^2)),    E X_i = 1,

and both profiles are means of convex functions of it:

    removing a unit:  delta(eps) = E max(0, A - e^eps)
    adding a unit:    delta(eps) = E max(0, 1 - e^eps A)

So whatever is larger than A in the *convex order* gives an upper bound in both directions at once. Moving a mass onto the
two neighbouring points of a grid such that its mean stays is larger in that order, sums of independent variables respect
it, and so the law of the sum may be put on a grid after every addition: no sampling, no tails that are guessed, and errors
of second order in the grid's step. On a geometric grid x_j = e^(j h) the mean of two means of k and l terms,
(k x_i + l x_(i-d)) / (k + l), is x_i times a number that depends on d alone: it lies equally far between the same two
neighbours of every i, so that an addition is one product of slices for each d.

What a grid leaves out at its ends, 1e-20 of mass at a time, is added to both divergences. All masses are sums of products
of positive numbers: rounding is relative, and :meth:`Mean.removing` and :meth:`Mean.adding` allow for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

__all__ = ("LEAST_SIGMA", "BallsInBins", "Mean", "mean_of_ratios")

Vector = npt.NDArray[np.float64]

#: Less noise protects nobody, and its grids are large: callers count no amplification.
LEAST_SIGMA = 0.2
_MOST_SIGMA = 1e4
_MOST_BINS = 1 << 16
#: The grid's step over the standard deviation of a partial mean, for an addition to widen it by one part in ten thousand.
_FINENESS = 0.025
_WIDEST_STEP = 0.05
_MOST_POINTS = 1 << 13
#: Standard deviations at which the noise is cut; and the mass, with and without the unit, that may be dropped at once.
_CUT = 9.2
_CUT_MASS = 1e-20
#: Rounding of masses, relative, hundreds of times what their sums were seen to lose; and of losses, and with them of the
#: means that cells keep, a hundred times what a cell's mean loses where noise is large.
_SLACK, _SLACK_A_BIN, _SHIFT = 1e-10, 1e-13, 1e-12


@dataclass(frozen=True)
class Mean:
    """The law of a mean of likelihood ratios on a geometric grid; larger in the convex order, but for what is beyond.

    Attributes:
        losses: log of the mean at each point, increasing, (m,).
        masses: chances of the points without the unit, (m,).
        beyond: at most this much chance, with the unit and without it together, is on no point: it counts as lost.
        slack: relative rounding of the masses.
    """

    losses: Vector
    masses: Vector
    beyond: float
    slack: float

    def removing(self, eps: Vector) -> Vector:
        """E max(0, A - e^eps) at every eps of shape (n,), rounded up."""
        eps = eps - _SHIFT
        values = np.exp(self.losses)
        above = np.cumsum(self.masses[::-1])[::-1]  # mass at and above each point
        # Piecewise linear in e^eps: from the top down, a sum of positive terms.
        gaps = np.diff(values) * above[1:]
        at_points = np.append(np.cumsum(gaps[::-1])[::-1], 0.0)
        point = np.searchsorted(self.losses, eps)  # the first at or above eps
        inside = np.minimum(point, len(values) - 1)
        delta = np.where(point < len(values), at_points[inside] + _rise(self.losses[inside], eps) * above[inside], 0.0)
        return np.clip(delta * (1.0 + self.slack) + self.beyond, 0.0, 1.0)

    def adding(self, eps: Vector) -> Vector:
        """E max(0, 1 - e^eps A) at every eps of shape (n,), rounded up."""
        low = -(eps - _SHIFT)  # e^eps max(0, e^low - A)
        values = np.exp(self.losses)
        below = np.cumsum(self.masses)  # mass at and below each point
        at_points = np.append(0.0, np.cumsum(np.diff(values) * below[:-1]))
        point = np.searchsorted(self.losses, low, side="right") - 1  # the last at or below low
        inside = np.maximum(point, 0)
        scaled = (
            np.exp(np.minimum(-low, 700.0)) * at_points[inside] - np.expm1(self.losses[inside] - low) * below[inside]
        )
        delta = np.where(point >= 0, scaled, 0.0)
        return np.clip(delta * (1.0 + self.slack) + self.beyond, 0.0, 1.0)


def _rise(high: Vector, low: Vector) -> Vector:
    """e^high - e^low where high >= low, without cancellation."""
    return np.exp(high) * -np.expm1(np.minimum(low - high, 0.0))


@dataclass(frozen=True)
class BallsInBins:
    """One pass over balls-in-bins batches, as a composition of loss distributions needs to know it.

    Args:
        sigma: noise multiplier of each step, at least :data:`LEAST_SIGMA`.
        bins: steps of the pass, >= 1.
    """

    sigma: float
    bins: int

    @property
    def _mean(self) -> Mean:
        # Less noise and fewer bins than there are have the larger divergences: a mean of more terms is less in convex order.
        return mean_of_ratios(min(self.sigma, _MOST_SIGMA), min(self.bins, _MOST_BINS))

    def divergence(self, remove: bool, eps: Vector) -> Vector:
        """Hockey-stick divergence at any real ``eps``, (m,) -> (m,), from above."""
        return self._mean.removing(eps) if remove else self._mean.adding(eps)

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest loss of the removal direction."""
        losses = self._mean.losses
        return float(losses[0]), float(losses[-1])

    @property
    def spread(self) -> float:
        """Standard deviation of the likelihood ratio, sqrt((exp(1/sigma^2) - 1) / bins)."""
        return math.sqrt(math.expm1(self.sigma**-2) / self.bins)

    @property
    def size(self) -> float:
        """What the divergences near 0 are at most of."""
        return min(1.0, self.spread)

    def sample(self) -> tuple[Vector, Vector, Vector]:
        """Losses of removing, and their weights with the unit and without it, all (m,)."""
        mean = self._mean
        return mean.losses, mean.masses * np.exp(mean.losses), mean.masses


@lru_cache(maxsize=64)
def mean_of_ratios(sigma: float, bins: int) -> Mean:
    """The law of A for noise multiplier ``sigma`` in [0.2, 1e4] and ``bins`` >= 1 steps a pass."""
    known: dict[int, _Grid] = {}

    def mean(terms: int) -> _Grid:
        if terms not in known:
            half = terms // 2
            known[terms] = _ratio(sigma, _step(sigma, 1)) if half == 0 else _joined(mean(terms - half), mean(half))
        return known[terms].refined(_step(sigma, terms))

    found = mean(bins)
    losses: Vector = (found.first + np.arange(len(found.masses), dtype=np.float64)) * found.step
    return Mean(losses, found.masses, found.beyond, _SLACK + _SLACK_A_BIN * bins)


def _step(sigma: float, terms: int) -> float:
    """The grid's step for a mean of ``terms`` ratios: a power of two, so that grids are parts of finer ones."""
    spread = math.sqrt(math.expm1(sigma**-2) / terms)
    # Log-normals of much spread have long tails: what they need more points for is not worth them.
    width = 2.0 * _CUT / sigma + sigma**-2
    wanted = max(min(_FINENESS * min(spread, 1.0 / sigma), _WIDEST_STEP), min(width, 40.0 * spread) / _MOST_POINTS)
    return 2.0 ** math.floor(math.log2(wanted))


@dataclass(frozen=True)
class _Grid:
    """A mean of ``terms`` ratios under way: mass ``masses[k]`` at e^((first + k) step)."""

    terms: int
    step: float
    first: int
    masses: Vector
    beyond: float

    def refined(self, step: float) -> _Grid:
        """The same on a finer grid, of which this one's points are some."""
        times = round(self.step / step)
        if times <= 1:
            return self
        masses = np.zeros((len(self.masses) - 1) * times + 1)
        masses[::times] = self.masses
        return _Grid(self.terms, step, self.first * times, masses, self.beyond)

    def over(self, first: int, size: int) -> Vector:
        """Masses at ``size`` points from ``first`` on, which hold all there is."""
        masses = np.zeros(size)
        masses[self.first - first :][: len(self.masses)] = self.masses
        return masses


def _ratio(sigma: float, step: float) -> _Grid:
    """One log-normal: each cell's mass goes to its two ends such that the cell's mean stays."""
    middle = 0.5 * sigma**-2  # of log X: -middle without the unit, +middle with it, standard deviation 1 / sigma
    first = math.floor((-middle - _CUT / sigma) / step)
    last = math.ceil((middle + _CUT / sigma) / step)
    logs: Vector = np.arange(first, last + 1, dtype=np.float64) * step
    without = _normal_cells((logs + middle) * sigma)
    with_unit = _normal_cells((logs - middle) * sigma)  # mass times mean value, of each cell
    # Of a cell [x, x e^h] with mass m and m E X = n, the upper end gets (n / x - m) / (e^h - 1).
    upper = np.clip((with_unit * np.exp(-logs[:-1]) - without) / math.expm1(step), 0.0, without)
    masses = np.append(without - upper, 0.0) + np.append(0.0, upper)
    # Below the first point lies less with the unit than without it, above the last one the reverse.
    return _Grid(1, step, first, masses, 4.0 * float(ndtr(-_CUT)))


def _normal_cells(z: Vector) -> Vector:
    """Normal mass between neighbouring points, to full relative precision in both tails."""
    cells: Vector = np.where(z[:-1] > 0.0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
    return cells


def _joined(one: _Grid, other: _Grid) -> _Grid:
    """The mean of all terms of two independent means, on the finer of their grids."""
    step = min(one.step, other.step)
    one, other = one.refined(step), other.refined(step)
    terms = one.terms + other.terms
    first = min(one.first, other.first)
    size = max(one.first + len(one.masses), other.first + len(other.masses)) - first
    p, q = one.over(first, size), other.over(first, size)
    weights = (one.terms / terms, other.terms / terms)
    # The least mean is that of the first point beside the last, which stands in ``room`` points before the larger of them.
    least = min(weights) + (1.0 - min(weights)) * math.exp(-size * step)
    room = math.ceil(-math.log(least) / step) + 1
    out = np.zeros(size + room + 1)
    _pair(out, room, p * q, 1.0, step)
    if one.terms == other.terms:  # both orders at once
        _pairs(out, room, [(p, q), (q, p)], 0.5, step)
    else:
        _pairs(out, room, [(p, q)], weights[0], step)
        _pairs(out, room, [(q, p)], weights[1], step)
    # Where one part is beyond its grid, the other has mean 1 as everywhere: the mean of both has no more there than the part.
    beyond = one.beyond + other.beyond
    return _trimmed(_Grid(terms, step, first - room, out, beyond))


def _pair(out: Vector, at: int, masses: Vector, factor: float, step: float) -> None:
    """Put masses that stand at consecutive points, the first of them ``at``, at ``factor`` times their values."""
    shift = math.log(factor) / step
    whole = math.floor(shift)
    up = math.expm1((shift - whole) * step) / math.expm1(step)
    begin = at + whole
    out[begin : begin + len(masses)] += (1.0 - up) * masses
    out[begin + 1 : begin + 1 + len(masses)] += up * masses


def _pairs(out: Vector, at: int, ordered: list[tuple[Vector, Vector]], share: float, step: float) -> None:
    """Add all pairs of a larger value, of weight ``share``, and a smaller one, of the other weight."""
    size = len(ordered[0][0])
    shift = math.log(share) / step
    whole = math.floor(shift)
    # From some distance on, the smaller value does not carry the mean over the next point: share (1 + r e^(-d h)) < e^(f + h)
    margin = math.expm1((whole + 1 - shift) * step) * share / (1.0 - share)
    near = size if margin <= 0.0 else min(size, max(1, math.ceil(-math.log(margin) / step) + 1))
    for d in range(1, near):
        masses = ordered[0][0][d:] * ordered[0][1][:-d]
        for larger, smaller in ordered[1:]:
            masses += larger[d:] * smaller[:-d]
        _pair(out, at + d, masses, share + (1.0 - share) * math.exp(-d * step), step)
    for larger, smaller in ordered if near < size else ():
        masses = larger[near:] * np.cumsum(smaller)[:-near]
        moved = larger[near:] * _decayed(smaller, step)[:-near] * math.exp(-near * step)
        # Linear in the smaller value, within one cell: all distances at once.
        up = math.expm1((shift - whole) * step) * masses + (1.0 - share) * math.exp(-whole * step) * moved
        up = np.clip(up / math.expm1(step), 0.0, masses)
        begin = at + near + whole
        out[begin : begin + len(masses)] += masses - up
        out[begin + 1 : begin + 1 + len(masses)] += up


def _decayed(masses: Vector, step: float) -> Vector:
    """y_i = sum_(j <= i) masses_j e^(-(i - j) step); grids span less than e^200, so nothing overflows."""
    powers = np.exp(np.arange(len(masses)) * step)
    decayed: Vector = np.cumsum(masses * powers) / powers
    return decayed


def _trimmed(total: _Grid) -> _Grid:
    """Without the ends that hold next to nothing, which are beyond from then on."""
    with_unit = total.masses * np.exp((total.first + np.arange(len(total.masses))) * total.step)
    low = int(np.searchsorted(np.cumsum(total.masses), _CUT_MASS))
    top = len(with_unit) - int(np.searchsorted(np.cumsum(with_unit[::-1]), _CUT_MASS))
    lost = float(sum(part.sum() for masses in (total.masses, with_unit) for part in (masses[:low], masses[top:])))
    return _Grid(total.terms, total.step, total.first + low, total.masses[low:top], total.beyond + lost)

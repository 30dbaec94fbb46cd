"""The exact privacy profile of one Poisson-subsampled Gaussian step, in both directions.

With G(u) the Gaussian mechanism's delta at eps = u, subsampling at rate q gives (Balle, Barthe and Gaboardi
2018, arXiv 1807.01647, theorem 2, with u = log((e^eps - 1 + q) / q)):

    removing a unit:  delta(eps) = q G(u(eps)),                          and 1 - e^eps for eps <= log(1 - q)
    adding a unit:    delta(eps) = q e^(eps + u(-eps)) G(-u(-eps)),      and 0 for eps >= -log(1 - q)

The factor q in front keeps rounding errors q times smaller than a difference of probabilities would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from lightning_dp.accounting.gaussian import gaussian_delta

__all__ = ("SampledGaussian", "amplified", "loss_ends", "profile_add", "profile_remove")

Vector = npt.NDArray[np.float64]
#: Hockey-stick divergence of one step: (noise multiplier, rate, eps of shape (m,)) -> (m,)
Profile = Callable[[float, float, Vector], Vector]

#: Noise mass cut off in one step. Independent of steps and delta, so that the grid of a step never depends on
#: them.
_CUT_MASS = 1e-18


def amplified(eps: Vector, q: float) -> Vector:
    """u(eps) = log((e^eps - 1 + q) / q) for eps > log(1 - q)."""
    small = np.minimum(eps, 30.0)
    return np.where(eps < 30.0, np.log1p(np.expm1(small) / q), eps - math.log(q) + np.log1p((q - 1.0) * np.exp(-eps)))


def _gaussian(sigma: float, u: Vector) -> Vector:
    """G(u) for u of either sign."""
    positive = gaussian_delta(1.0 / sigma, np.abs(u))
    return np.where(u >= 0.0, positive, -np.expm1(np.minimum(u, 0.0)) + np.exp(np.minimum(u, 0.0)) * positive)


def profile_remove(sigma: float, q: float, eps: npt.ArrayLike) -> Vector:
    """Hockey-stick divergence of the step with the unit from the step without it, at any real ``eps``."""
    points = np.atleast_1d(np.asarray(eps, dtype=np.float64))
    delta = -np.expm1(np.minimum(points, 0.0))
    inside = points > (math.log1p(-q) if q < 1.0 else -math.inf)
    delta[inside] = q * _gaussian(sigma, amplified(points[inside], q)) if q < 1.0 else _gaussian(sigma, points[inside])
    return np.clip(delta, 0.0, 1.0)


def profile_add(sigma: float, q: float, eps: npt.ArrayLike) -> Vector:
    """Hockey-stick divergence of the step without the unit from the step with it, at any real ``eps``."""
    points = np.atleast_1d(np.asarray(eps, dtype=np.float64))
    if q == 1.0:
        return profile_remove(sigma, q, points)
    delta = np.zeros_like(points)
    below = points <= 0.0
    between = ~below & (points < -math.log1p(-q))
    # For eps <= 0 by the complement: delta(eps) = 1 - e^eps + e^eps delta_remove(-eps).
    delta[below] = -np.expm1(points[below]) + np.exp(points[below]) * profile_remove(sigma, q, -points[below])
    u = amplified(-points[between], q)
    delta[between] = q * np.exp(points[between] + u) * _gaussian(sigma, -u)
    return np.clip(delta, 0.0, 1.0)


def loss_ends(sigma: float, q: float) -> tuple[float, float]:
    """Smallest and largest privacy loss of the removal direction worth a grid point; adding mirrors them.

    Mass beyond is not lost: connecting the dots puts what is below on the lowest point, and what is above on
    infinity.
    """
    # The unit's part of the mixture has weight q, so the noise may be cut off 1 / q earlier.
    z = -float(ndtri(min(0.1, _CUT_MASS / q)))
    low, high = ((2.0 * x - 1.0) / 2.0 / sigma / sigma for x in (-z * sigma, 1.0 + z * sigma))
    if q == 1.0:
        return low, high
    return tuple(float(np.logaddexp(math.log1p(-q), math.log(q) + loss)) for loss in (low, high))  # type: ignore[return-value]


@dataclass(frozen=True)
class SampledGaussian:
    """One Poisson-subsampled step, as a composition of loss distributions needs to know it.

    Args:
        sigma: noise multiplier, > 0.
        rate: Poisson rate in (0, 1].
        profiles: divergences of the step in the two directions; others than the default belong to what an attacker who
            sees less can tell, and then to no guarantee.
    """

    sigma: float
    rate: float
    profiles: tuple[Profile, Profile] = (profile_remove, profile_add)

    def divergence(self, remove: bool, eps: Vector) -> Vector:
        """Hockey-stick divergence at any real ``eps``, (m,) -> (m,), with the unit from without it or the reverse."""
        return self.profiles[0 if remove else 1](self.sigma, self.rate, eps)

    @property
    def ends(self) -> tuple[float, float]:
        """As :func:`loss_ends`."""
        return loss_ends(self.sigma, self.rate)

    @property
    def spread(self) -> float:
        """Standard deviation of the likelihood ratio, rate sqrt(exp(1/sigma^2) - 1)."""
        return self.rate * math.sqrt(math.expm1(min(700.0, self.sigma**-2)))

    @property
    def size(self) -> float:
        """What the divergence is at most of, and its rounding with it."""
        return self.rate

    def sample(self) -> tuple[Vector, Vector, Vector]:
        """Losses of removing at many points, and the points' weights with the unit and without it, all (m,)."""
        z = np.linspace(-9.5, 9.5, 2001)
        normal = np.exp(-0.5 * z * z)
        normal /= normal.sum()
        x = np.concatenate((self.sigma * z, 1.0 + self.sigma * z))
        loss = (2.0 * x - 1.0) / (2.0 * self.sigma * self.sigma)
        if self.rate < 1.0:
            loss = np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + loss)
        with_unit = np.concatenate(((1.0 - self.rate) * normal, self.rate * normal))
        return loss, with_unit, np.concatenate((normal, np.zeros_like(normal)))

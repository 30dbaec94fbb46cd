"""Reconstruction robustness of single mechanisms, where the best test can be written down.

A mechanism is (eta, gamma)-robust against reconstruction if no attack gets within eta of the target with a chance above
gamma. If a blind guess gets there with chance kappa, gamma is the power of the best test of size kappa of "the target was
not used" against "it was used": gamma = 1 - f(kappa) with the trade-off function f (Kaissis et al. 2023, arXiv 2307.03928).
All functions take any shape of ``kappa`` in [0, 1] and return the same shape.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lightning_dp.accounting.accountants import check_eps
from lightning_dp.accounting.gaussian import gaussian_power
from lightning_dp.errors import PrivacyConfigError

__all__ = ("check_kappa", "dp_gamma", "gaussian_gamma", "kappa_of", "laplace_gamma", "subsampled_gamma")

Array = npt.NDArray[np.float64]


def check_kappa(kappa: npt.ArrayLike) -> Array:
    """Refuse chances outside [0, 1], NaN among them."""
    rates = np.asarray(kappa, dtype=np.float64)
    if not np.all((rates >= 0.0) & (rates <= 1.0)):
        raise PrivacyConfigError(
            f"kappa must lie in [0, 1], got {kappa!r}: it is the chance that a blind guess reconstructs the target, 1/n for "
            "a guess among n samples."
        )
    return rates


def kappa_of(kappa: float | None, dataset_size: int | None) -> float:
    """``kappa``, or 1/n where it is ``None``: the attacker holds all n samples and must say which one it is.

    Raises:
        PrivacyConfigError: If ``kappa`` is out of range, or both are ``None``.
    """
    if kappa is not None:
        return float(check_kappa(kappa))
    if dataset_size is None or not dataset_size >= 1:
        raise PrivacyConfigError(
            f"kappa=None means 1/n, and the number of samples is {dataset_size!r}. Give kappa, the chance that a blind guess "
            "succeeds, or dataset_size."
        )
    return 1.0 / dataset_size


def gaussian_gamma(kappa: npt.ArrayLike, mu: float) -> Array:
    """Gaussian mechanism without subsampling: Phi(Phi^-1(kappa) + mu); exact.

    Args:
        kappa: Chances of a blind guess.
        mu: Sensitivity over noise standard deviation, in [0, inf]. T steps have mu sqrt(T).
    """
    if not mu >= 0.0:
        raise PrivacyConfigError(f"mu must be >= 0, got {mu}: it is sensitivity over noise standard deviation.")
    return gaussian_power(float(mu), check_kappa(kappa))


def subsampled_gamma(kappa: npt.ArrayLike, mu: float, rate: float) -> Array:
    """One step at Poisson rate ``rate``: the test of the full step is best, and pays off if the unit was drawn; exact."""
    if not 0.0 < rate <= 1.0:
        raise PrivacyConfigError(f"rate must lie in (0, 1], got {rate}: it is expected batch size / n.")
    rates = check_kappa(kappa)
    powers: Array = np.maximum(rates, rate * gaussian_gamma(rates, mu) + (1.0 - rate) * rates)[()]
    return powers


def laplace_gamma(kappa: npt.ArrayLike, eps: float) -> Array:
    """Laplace mechanism on a number of sensitivity ``eps`` times its scale: (eps, 0)-private; exact."""
    check_eps(eps, zero=True)
    rates, shrink = check_kappa(kappa), math.exp(-eps)
    with np.errstate(divide="ignore", over="ignore"):
        # e^eps kappa as a quotient, which cannot overflow where it is chosen.
        low = rates / shrink if shrink > 0.0 else np.full_like(rates, math.inf)
        middle = 1.0 - shrink / (4.0 * np.maximum(rates, 1e-300))
    powers = np.where(rates < 0.5 * shrink, low, np.where(rates <= 0.5, middle, 1.0 - shrink * (1.0 - rates)))
    found: Array = np.where(rates == 0.0, 0.0, np.clip(powers, rates, 1.0))[()]
    return found


def dp_gamma(kappa: npt.ArrayLike, eps: float, delta: float = 0.0) -> Array:
    """What (eps, delta) alone promises of any mechanism: an upper bound, and a weak one.

    min(1, e^eps kappa + delta, 1 - e^-eps (1 - delta - kappa)).
    """
    check_eps(eps, zero=True)
    if not 0.0 <= delta <= 1.0:
        raise PrivacyConfigError(f"delta must lie in [0, 1], got {delta}.")
    rates = check_kappa(kappa)
    with np.errstate(over="ignore", divide="ignore"):
        grown = np.exp(np.minimum(eps + np.log(rates), 1.0)) + delta
    bound = np.minimum(grown, 1.0 - math.exp(-eps) * (1.0 - delta - rates))
    found: Array = np.clip(bound, rates, 1.0)[()]
    return found

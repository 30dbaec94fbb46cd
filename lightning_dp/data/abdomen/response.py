"""Who responds to therapy, in the phantom: a model whose best possible AUC is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from lightning_dp.errors import PrivacyConfigError

__all__ = ("ResponseModel",)

_GRID = np.linspace(-8.0, 8.0, 2001)
_NORMAL = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


@dataclass(frozen=True)
class ResponseModel:
    """``P(response | traits, noise) = logistic(gain * w.traits + noise)``, noise ~ N(0, noise^2).

    The traits (texture, enhancement and volume of the tumour) are independent N(0, 1) numbers of a patient, which the images
    show; the noise shows nowhere. With ``|w| = 1`` the score ``s = w.traits`` is N(0, 1), the probability of a response rises
    with it, and so no classifier, however good, has a larger AUC than s itself (Neyman and Pearson). That **Bayes AUC** is an
    integral over s, computed here and not simulated.

    Args:
        gain: how much the traits decide.
        noise: standard deviation of what cannot be seen, in log odds.
        weights: w, of texture, enhancement and volume; scaled to length 1.

    Raises:
        PrivacyConfigError: for a negative gain or noise, or weights that are all zero.
    """

    gain: float
    noise: float = 1.0
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.gain < 0 or self.noise < 0 or not any(self.weights):
            raise PrivacyConfigError(
                f"gain={self.gain} and noise={self.noise} must be at least 0, and a weight of {self.weights} not 0."
            )

    @classmethod
    def with_bayes_auc(
        cls, auc: float, noise: float = 1.0, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> ResponseModel:
        """The model whose best possible AUC is ``auc``.

        Raises:
            PrivacyConfigError: for an AUC outside [0.5, 0.99].
        """
        if not 0.5 <= auc <= 0.99:
            raise PrivacyConfigError(
                f"bayes_auc={auc}: choose it from 0.5 (nothing can be known) to 0.99, for example 0.8."
            )
        gain = 0.0 if auc == 0.5 else brentq(lambda g: cls(g, noise, weights).bayes_auc - auc, 0.0, 200.0)
        return cls(float(gain), noise, weights)

    def score(self, traits: NDArray[np.float64]) -> NDArray[np.float64]:
        """s of each patient's traits ``(n, 3)``: the best that a classifier can know."""
        weights = np.asarray(self.weights)
        score: NDArray[np.float64] = traits @ (weights / np.linalg.norm(weights))
        return score

    def probability(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of a response given s, the noise averaged over."""
        odds = self.gain * np.asarray(score)[..., None] + self.noise * _NODES
        probability: NDArray[np.float64] = expit(odds) @ (_NODE_WEIGHTS / _NODE_WEIGHTS.sum())
        return probability

    @property
    def bayes_auc(self) -> float:
        """AUC of s: the chance that a responder's s exceeds a non-responder's, ties halved."""
        probability = self.probability(_GRID)
        responders, others = _NORMAL * probability, _NORMAL * (1 - probability)
        below = np.cumsum(others) - others / 2
        return float((responders * below).sum() / (responders.sum() * others.sum()))

    def draw(self, traits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Responses of patients with these traits: int64 ``(n,)``, 1 for a response."""
        noise = self.noise * rng.standard_normal(len(traits))
        chance: NDArray[np.float64] = expit(self.gain * self.score(traits) + noise)
        return (rng.random(len(traits)) < chance).astype(np.int64)

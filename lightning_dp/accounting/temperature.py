"""What ties noise, learning rate and temperature together when the noise of DP-SGD is read as that of Langevin dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_dp.errors import PrivacyConfigError

__all__ = ("LangevinLaw",)


@dataclass(frozen=True)
class LangevinLaw:
    """The law of a run with clipping bound C, n units and expected batch size B: ``Tmp = lr sigma^2 C^2 n / (2 B^2)``.

    Stochastic gradient Langevin dynamics (Welling & Teh 2011) on ``U = n * mean loss - log prior`` takes steps of
    ``-(h/2) grad U + N(0, h Tmp)``; a step of DP-SGD is ``-lr * mean gradient + N(0, (lr sigma C / B)^2)``. The drifts agree
    for ``lr = h n / 2`` and the noises then for the temperature above (Knolle et al. 2021, arXiv 2107.04296, have the idea;
    the constants follow from these two lines). It says nothing about privacy: that is in noise, rate and steps alone.

    Args:
        max_grad_norm: C, the sensitivity of the clipped sum.
        dataset_size: n, the number of units.
        expected_batch_size: B, the expected number of units in a step.

    Raises:
        PrivacyConfigError: for values that are not positive.
    """

    max_grad_norm: float
    dataset_size: int
    expected_batch_size: float

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "dataset_size", "expected_batch_size"):
            positive(name, getattr(self, name))

    @property
    def _scale(self) -> float:
        return self.max_grad_norm**2 * self.dataset_size / (2 * self.expected_batch_size**2)

    def temperature(self, learning_rate: float, noise_multiplier: float) -> float:
        """The temperature of steps of this size with this noise; 0 without noise."""
        return learning_rate * noise_multiplier**2 * self._scale

    def learning_rate(self, temperature: float, noise_multiplier: float) -> float:
        """The step size at which this noise has this temperature."""
        positive("noise_multiplier", noise_multiplier)
        return temperature / (noise_multiplier**2 * self._scale)

    def noise_multiplier(self, temperature: float, learning_rate: float) -> float:
        """The noise that gives steps of this size this temperature."""
        positive("learning_rate", learning_rate)
        return math.sqrt(temperature / (learning_rate * self._scale))

    def weight_decay(self, prior_scale: float) -> float:
        """The weight decay, beside a mean loss, that is the prior N(0, s^2): ``1 / (n s^2)``."""
        return 1 / (self.dataset_size * positive("prior_scale", prior_scale) ** 2)

    def prior_scale(self, weight_decay: float) -> float:
        """Standard deviation of the Gaussian prior that a weight decay stands for; infinite (a flat prior) for 0."""
        return math.inf if weight_decay == 0 else 1 / math.sqrt(self.dataset_size * weight_decay)


def positive(name: str, value: object) -> float:
    """The value, if it is a positive, finite number; else raises PrivacyConfigError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise PrivacyConfigError(f"{name}={value!r} must be a positive, finite number")

"""Two of noise, temperature and learning rate are given; the third, and the weight decay of the prior, follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_dp.accounting import LangevinLaw
from lightning_dp.accounting.temperature import positive
from lightning_dp.errors import PrivacyConfigError

__all__ = ("Tempering", "learning_rate_of")

TOLERANCE = 0.01  # how far numbers that were given may be from the law: a printed number has four digits


@dataclass(frozen=True)
class Tempering:
    """What was asked for, and how it is fitted to an optimizer.

    Args:
        temperature: demanded, or ``None`` to follow.
        learning_rate: demanded, or ``None`` for the optimizer's own, or to follow.
        prior_scale: standard deviation of a Gaussian prior, or ``None`` for what the optimizer's weight decay stands for.
        has_noise: whether eps or the noise multiplier is given.

    Raises:
        PrivacyConfigError: for values that are not positive, or fewer than two of the three.
    """

    temperature: float | None
    learning_rate: float | None
    prior_scale: float | None
    has_noise: bool

    def __post_init__(self) -> None:
        for name in ("temperature", "learning_rate", "prior_scale"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if not self.has_noise and self.temperature is None:
            raise PrivacyConfigError(
                "neither eps, noise_multiplier nor temperature given. Give eps (the noise is calibrated to it, and the "
                "temperature follows from the optimizer's learning rate), or eps and temperature (the learning rate "
                "follows), or temperature alone (the noise follows from the optimizer's learning rate, and eps is reported)."
            )

    @property
    def fixes_learning_rate(self) -> bool:
        """Whether the step size is one number that a scheduler must not move."""
        return self.temperature is not None or self.learning_rate is not None

    def noise_multiplier(self, law: LangevinLaw, optimizers: Sequence[Optimizer]) -> float:
        """The noise that follows from temperature and learning rate."""
        assert self.temperature is not None
        rate = learning_rate_of(optimizers) if self.learning_rate is None else self.learning_rate
        return law.noise_multiplier(self.temperature, rate)

    def rate(self, law: LangevinLaw, noise_multiplier: float, current: float) -> float:
        """The learning rate of the run, where the optimizer's own is ``current``.

        Raises:
            PrivacyConfigError: if all three are given and contradict the law.
        """
        if self.temperature is None or not self.has_noise:
            return current if self.learning_rate is None else self.learning_rate
        if noise_multiplier == 0:
            raise PrivacyConfigError(
                f"temperature={self.temperature:g} without noise (noise_multiplier=0) needs steps without end. Leave "
                "temperature out, or add noise."
            )
        follows = law.learning_rate(self.temperature, noise_multiplier)
        if self.learning_rate is None:
            return follows
        if not math.isclose(follows, self.learning_rate, rel_tol=TOLERANCE):
            raise PrivacyConfigError(
                f"noise multiplier {noise_multiplier:.6g}, temperature {self.temperature:.6g} and learning rate "
                f"{self.learning_rate:.6g} contradict each other: this noise has temperature "
                f"{law.temperature(self.learning_rate, noise_multiplier):.6g} at this learning rate, and needs learning rate "
                f"{follows:.6g} for this temperature. Leave one of the three out: it follows."
            )
        return self.learning_rate

    def fit(self, law: LangevinLaw, noise_multiplier: float, optimizer: Optimizer) -> list[str]:
        """Sets learning rate and weight decay of all parameter groups, and says what it changed.

        Raises:
            PrivacyConfigError: if the weight decay contradicts the prior.
        """
        said = []
        current = learning_rate_of([optimizer])
        rate = self.rate(law, noise_multiplier, current)
        if rate != current:
            said.append(f"the optimizer's learning rate was set from {current:g} to {rate:.6g}")
        decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        decay = None if self.prior_scale is None else law.weight_decay(self.prior_scale)
        if decay is not None:
            strange = [d for d in decays if d and not math.isclose(d, decay, rel_tol=TOLERANCE)]
            if strange:
                raise PrivacyConfigError(
                    f"prior_scale={self.prior_scale:g} is weight_decay = 1/(n s^2) = {decay:.6g} for n = {law.dataset_size}, "
                    f"and the optimizer has weight_decay={strange[0]:g}, a prior of scale {law.prior_scale(strange[0]):.6g}. "
                    "Give one of the two."
                )
            if 0.0 in decays:
                said.append(f"its weight_decay was set to {decay:.6g}")
        for group, own in zip(optimizer.param_groups, decays, strict=True):
            group["lr"] = rate
            group["weight_decay"] = own or decay or 0.0
        return said


def learning_rate_of(optimizers: Sequence[Optimizer]) -> float:
    """The one learning rate of all parameter groups.

    Raises:
        PrivacyConfigError: if there are several, which have no common temperature.
    """
    rates = {float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups}
    if len(rates) != 1:
        raise PrivacyConfigError(
            f"Langevin dynamics needs one learning rate for all parameters, and there are {len(rates)}: "
            f"{', '.join(f'{rate:g}' for rate in sorted(rates))}"
        )
    return rates.pop()

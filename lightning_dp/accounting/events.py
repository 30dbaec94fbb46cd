"""What one private step does to the data: the subsampled Gaussian mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_dp.errors import PrivacyConfigError

__all__ = ("RELATION", "GaussianEvent", "Sampling")

Sampling = Literal["poisson", "truncated_poisson", "shuffle"]

#: The neighbouring relation behind every eps of this package: data sets that differ by one added or removed
#: unit.
RELATION = "add_or_remove_one"


@dataclass(frozen=True)
class GaussianEvent:
    """One noisy sum over a random batch.

    The mechanism adds Gaussian noise of standard deviation ``noise_multiplier * sensitivity`` to a sum in
    which one unit contributes at most ``sensitivity`` (L2), each unit taking part independently with chance
    ``sample_rate``.

    Args:
        noise_multiplier: Noise standard deviation over L2 sensitivity; 0 means no privacy at all (eps is
            infinite).
        sample_rate: Poisson rate q in (0, 1]; 1 means that every unit takes part, hence no amplification.
        sampling: How batches are drawn. A shuffled pass visits every unit and is accounted without
            amplification, so ``"shuffle"`` needs ``sample_rate=1``.
        tail: Chance in [0, 1], per step, that the above fails to describe the step, however badly: that a draw
            was cut (``"truncated_poisson"`` only). Accountants add it to delta, once for each step.

    Raises:
        PrivacyConfigError: If a field is not finite or out of range, if amplification is claimed for
            shuffling, or a tail without truncation.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    sampling: Sampling = "poisson"
    tail: float = 0.0

    def __post_init__(self) -> None:
        sigma = _as_float("noise_multiplier", self.noise_multiplier)
        rate = _as_float("sample_rate", self.sample_rate)
        # NaN compares false with everything: test for what is allowed, never for what is not.
        if not (math.isfinite(sigma) and sigma >= 0.0):
            raise PrivacyConfigError(f"noise_multiplier must be finite and >= 0, got {sigma}: use 0 for no privacy.")
        if not 0.0 < rate <= 1.0:
            raise PrivacyConfigError(f"sample_rate must lie in (0, 1], got {rate}: it is expected batch size / n.")
        if self.sampling not in get_args(Sampling):
            raise PrivacyConfigError(f"sampling must be one of {get_args(Sampling)}, got {self.sampling!r}.")
        if self.sampling == "shuffle" and rate != 1.0:
            # Amplification by Poisson sampling does not hold for shuffled batches (arXiv 2403.17673).
            raise PrivacyConfigError(
                f"sampling='shuffle' is accounted without amplification and needs sample_rate=1, got {rate}: "
                "use sampling='poisson' for amplified accounting."
            )
        tail = _as_float("tail", self.tail)
        if not 0.0 <= tail <= 1.0 or (tail > 0.0 and self.sampling != "truncated_poisson"):
            raise PrivacyConfigError(
                f"tail must lie in [0, 1], and be 0 unless sampling='truncated_poisson', got {tail}: it is the chance that "
                "a batch had to be cut."
            )
        object.__setattr__(self, "tail", tail)
        object.__setattr__(self, "noise_multiplier", sigma)
        object.__setattr__(self, "sample_rate", rate)


def _as_float(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise PrivacyConfigError(f"{name} must be a number, got {value!r}.") from error

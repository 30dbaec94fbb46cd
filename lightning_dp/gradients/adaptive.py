"""Adaptive clipping: a threshold that follows a quantile of the units' gradient norms, privately."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients.clipping import ROUND_UP, Clipping
from lightning_dp.gradients.noise import NoiseSource

__all__ = ("AdaptiveClipping", "AdaptiveThreshold")

LOWEST, HIGHEST = 1e-6, 1e6  # of the threshold: far from where float32 squares vanish or overflow
BIT = 0.5  # the most by which one unit moves the sum of (bit - 1/2)


@dataclass(frozen=True)
class AdaptiveClipping:
    """Settings of a threshold that follows a quantile (Andrew et al. 2021, arXiv 1905.03871).

    Args:
        quantile: the share of units whose gradients shall stay unclipped, in (0, 1).
        learning_rate: eta of the geometric update ``C <- C exp(-eta (share - quantile))``, positive.
        count_noise: standard deviation of the noise on the number of unclipped units. More of it leaves more of the
            privacy to the gradients; it must exceed half the noise multiplier. ``None``: a twentieth of the expected batch
            size (the paper's), or five noise multipliers where that is more (the gradients' noise grows by 0.5 %).

    Raises:
        PrivacyConfigError: for values out of range.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise PrivacyConfigError(f"quantile={self.quantile!r} must lie strictly between 0 and 1: 0.5 is the median")
        if not 0.0 < self.learning_rate <= 10.0:
            raise PrivacyConfigError(f"learning_rate={self.learning_rate!r} of the threshold must lie in (0, 10]")
        if self.count_noise is not None and not 0.0 <= self.count_noise < math.inf:
            raise PrivacyConfigError(f"count_noise={self.count_noise!r} must be a finite number >= 0, or None")

    def count_std(self, noise_multiplier: float, expected_batch_size: float) -> float:
        """Standard deviation of the noise on the count. Without any noise multiplier there is none by default."""
        if self.count_noise is not None:
            return self.count_noise
        return max(expected_batch_size / 20.0, 5.0 * noise_multiplier) if noise_multiplier else 0.0

    def gradient_noise_multiplier(self, noise_multiplier: float, expected_batch_size: float) -> float:
        """What the gradients' noise multiplier must be for gradients and count together to have ``noise_multiplier``.

        Divide both releases by their noise. What one unit adds to the pair has a squared norm of at most
        ``z_gradient^-2 + (1 / (2 sigma_count))^2``, and the noise is standard normal: that is one Gaussian mechanism,
        with the multiplier z if the sum is ``z^-2``. Hence ``z_gradient = (z^-2 - (2 sigma_count)^-2)^(-1/2)`` (Andrew et
        al. 2021, theorem 1). Both see the same draw of units, so subsampling applies to the pair as a whole and the
        ledger's event stays what it is without adaptation.

        Raises:
            PrivacyConfigError: if the count alone would cost as much as the whole step may.
        """
        if noise_multiplier == 0.0:
            return 0.0
        std = self.count_std(noise_multiplier, expected_batch_size)
        left = noise_multiplier**-2 - (BIT / std) ** 2 if std > 0.0 else -math.inf
        if left <= 0.0:
            raise PrivacyConfigError(
                f"count_noise={std:g} leaves nothing for the gradients: counting unclipped samples would cost all of the "
                f"step's privacy. It must exceed noise_multiplier / 2 = {noise_multiplier / 2:.4g}; five noise multipliers "
                "cost 0.5 %, or leave it at None."
            )
        return float(left**-0.5)


class AdaptiveThreshold:
    """The threshold as it moves: fixed during a logical step, updated by the noisy count when the step is released.

    **Guarantee**: together with a gradient noised by :meth:`gradient_noise_multiplier`, a release is one Gaussian
    mechanism of the nominal noise multiplier. The threshold is computed from noisy counts and public numbers only (the
    *expected* batch size among them), so it may be saved and shown.

    Args:
        config: quantile, speed and noise.
        max_grad_norm: the first threshold.

    Raises:
        PrivacyConfigError: for a threshold that bounds nothing.
    """

    def __init__(self, config: AdaptiveClipping, max_grad_norm: float = 1.0) -> None:
        self.config = config
        self.clipping = Clipping(max_grad_norm)
        """The clipping in force."""
        self._count: Tensor | None = None

    def observe(self, squared_norms: Tensor, weights: Tensor | None = None) -> None:
        """Counts the units of a physical batch.

        Args:
            squared_norms: ``(U,)``; what is not finite counts as above the threshold.
            weights: ``(U,)`` in [0, 1], or ``None`` for ones.
        """
        below = squared_norms.sqrt() * ROUND_UP <= self.clipping.max_grad_norm  # false for NaN
        # Centred: an added unit moves the sum by half a count, not by a whole one.
        centred = below.to(torch.float32) - BIT
        total = centred.sum() if weights is None else (centred * weights.to(centred)).sum()
        self._count = total if self._count is None else self._count + total

    def release(
        self,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
        reduce: Callable[[Tensor], Tensor] | None,
        rank: int,
        device: torch.device,
    ) -> Clipping:
        """Publishes the noisy count of the step and returns the clipping of the next one, the same on every rank."""
        count = torch.zeros(1, device=device) if self._count is None else self._count.reshape(1).clone()
        if rank == 0:  # once over all ranks
            noise.add_(count, self.config.count_std(noise_multiplier, expected_batch_size))
        if reduce is not None:
            count = reduce(count)
        self.forget()
        # In expectation the sum is (share - 1/2) B. B is public; the number of units drawn is not.
        share = float(count) / expected_batch_size + BIT
        step = self.config.learning_rate * (share - self.config.quantile)
        self._move_to(self.clipping.max_grad_norm * math.exp(min(max(-step, -50.0), 50.0)))
        return self.clipping

    def forget(self) -> None:
        """Drops the count of a step that is not released."""
        self._count = None

    def state_dict(self) -> dict[str, Any]:
        """The threshold, a private output."""
        return {"max_grad_norm": self.clipping.max_grad_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved threshold. Raises PrivacyError if it is none."""
        value = state.get("max_grad_norm")
        if not isinstance(value, float) or not math.isfinite(value):
            raise PrivacyError(f"the saved clipping threshold {value!r} is not a number; restore an intact checkpoint")
        self._move_to(value)

    def _move_to(self, threshold: float) -> None:
        self.clipping = replace(self.clipping, max_grad_norm=min(max(threshold, LOWEST), HIGHEST))

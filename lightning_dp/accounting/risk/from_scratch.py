"""Reconstruction without prior knowledge: the laws of its error, for a server that chooses model and loss.

The server sends a linear layer and a loss by which the gradient *is* the input, and receives one noisy, clipped gradient of a
batch of one (Riess et al. 2024, arXiv 2402.12861). If the clipping binds, its best estimate of an input X of N numbers is
X + noise with variance s^2 = (noise multiplier * |X|)^2 a number, however large the layer, so that the mean squared error has
a Gamma law with shape N/2 and scale 2 s^2/N. An attacker who knows more about X than nothing does better: **this is no
differential-privacy guarantee**.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, gammainc, gammaincinv

from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps, merge_entries
from lightning_dp.errors import PrivacyConfigError

__all__ = ("FromScratchAttack", "Observed", "from_scratch_attack", "noise_multiplier_against_reconstruction")

Array = npt.NDArray[np.float64]
Observed = Literal["expected", "all"] | int


@dataclass(frozen=True)
class FromScratchAttack:
    """The error of the best reconstruction without a prior. A law, not a guarantee; not clamped to the data's range.

    Args:
        noise_multiplier: noise standard deviation over the clipping bound, in [0, inf]; T observed steps have 1/sqrt(T) of it.
        dimension: N, how many numbers the sample consists of (channels times height times width).
        data_norm: L2 norm of the sample. A statement about a whole data set must use the **smallest** norm in it: the larger
            the norm, the more noise the rescaling brings.
        data_range: largest minus smallest value a number can have, for PSNR.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    noise_multiplier: float
    dimension: int
    data_norm: float = 1.0
    data_range: float = 1.0

    def __post_init__(self) -> None:
        if not self.noise_multiplier >= 0.0:
            raise PrivacyConfigError(f"noise_multiplier must be >= 0, got {self.noise_multiplier!r}.")
        _check_size(self.dimension, self.data_norm)
        if not 0.0 < self.data_range < math.inf:
            raise PrivacyConfigError(
                f"data_range must be positive and finite, got {self.data_range!r}: 1 for values in [0, 1]."
            )

    @property
    def expected_mse(self) -> float:
        """Expected mean squared error, s^2 = (noise_multiplier * data_norm)^2."""
        return (self.noise_multiplier * self.data_norm) ** 2

    @property
    def sd_mse(self) -> float:
        """Standard deviation of the mean squared error, s^2 sqrt(2/N): small beside the mean where N is large."""
        return self.expected_mse * math.sqrt(2.0 / self.dimension)

    @property
    def expected_psnr(self) -> float:
        """Expected peak signal-to-noise ratio in dB; inf without noise."""
        if self.expected_mse == 0.0 or math.isinf(self.expected_mse):
            return math.inf if self.expected_mse == 0.0 else -math.inf
        scale = math.log(2.0 / self.dimension) + math.log(self.expected_mse)
        log_mse = float(digamma(0.5 * self.dimension)) + scale
        return 20.0 * math.log10(self.data_range) - 10.0 / math.log(10.0) * log_mse

    @property
    def ncc_bound(self) -> float:
        """Bound 1/sqrt(1 + N noise_multiplier^2) on the normalised cross-correlation, from an earlier version of the paper."""
        return 1.0 / math.hypot(1.0, math.sqrt(self.dimension) * self.noise_multiplier)

    def mse_cdf(self, mse: npt.ArrayLike) -> Array:
        """P(MSE <= ``mse``) for errors >= 0 of any shape: gamma of (eta, gamma)-robustness against this attack at eta = mse."""
        limits = np.asarray(mse, dtype=np.float64)
        if not np.all(limits >= 0.0):
            raise PrivacyConfigError(f"a mean squared error must be >= 0, got {mse!r}.")
        variance = self.expected_mse
        if variance == 0.0 or math.isinf(variance):
            return (np.ones_like(limits) if variance == 0.0 else np.zeros_like(limits))[()]
        half = 0.5 * self.dimension
        chances: Array = gammainc(half, half * limits / variance)[()]
        return chances

    def psnr_sf(self, psnr: npt.ArrayLike) -> Array:
        """P(PSNR >= ``psnr``) for values in dB of any shape."""
        return self.mse_cdf(self.data_range**2 * 10.0 ** (-0.1 * np.asarray(psnr, dtype=np.float64)))


def from_scratch_attack(
    entries: Sequence[LedgerEntry],
    dimension: int,
    data_norm: float = 1.0,
    data_range: float = 1.0,
    observed: Observed = "expected",
) -> FromScratchAttack:
    """The attack on a ledger: the server averages its estimates of one and the same sample over the steps that hold it.

    Args:
        entries: Any ledger's entries; empty means nothing was seen.
        dimension: As for :class:`FromScratchAttack`.
        data_norm: The same.
        data_range: The same.
        observed: In how many steps the sample takes part: ``"expected"``, what its sampling rates let expect, one at least;
            ``"all"``, every step; or a number of steps, those of least noise.

    Raises:
        PrivacyConfigError: If ``observed`` is neither, or exceeds the number of steps.
    """
    events = gaussian_steps(merge_entries(entries))
    levels = sorted((event.noise_multiplier, event.sample_rate, steps) for event, steps in events)
    if isinstance(observed, str):
        if observed not in ("expected", "all"):
            raise PrivacyConfigError(f"observed must be 'expected', 'all' or a number of steps, got {observed!r}.")
        weights = [(sigma, steps * (rate if observed == "expected" else 1.0)) for sigma, rate, steps in levels]
        if levels and math.fsum(weight for _, weight in weights) < 1.0:
            weights = [(levels[0][0], 1.0)]
    else:
        weights = _least_noise(levels, observed)
    if any(sigma < 1e-150 and weight > 0.0 for sigma, weight in weights):
        return FromScratchAttack(0.0, dimension, data_norm, data_range)
    precision = math.fsum(weight / sigma / sigma for sigma, weight in weights)
    sigma = 1.0 / math.sqrt(precision) if precision > 0.0 else math.inf
    return FromScratchAttack(sigma, dimension, data_norm, data_range)


def noise_multiplier_against_reconstruction(gamma: float, mse: float, dimension: int, data_norm: float = 1.0) -> float:
    """Noise multiplier at which one observed step is reconstructed to within ``mse`` with chance ``gamma``.

    sqrt(mse N / (2 P^-1(N/2, gamma))) / |X| with the regularised incomplete gamma function P.

    Args:
        gamma: In (0, 1).
        mse: Positive.
        dimension: As for :class:`FromScratchAttack`.
        data_norm: The same; positive.
    """
    _check_size(dimension, data_norm)
    if not 0.0 < gamma < 1.0:
        raise PrivacyConfigError(f"gamma must lie in (0, 1), got {gamma!r}: it is the chance that the attack succeeds.")
    if not 0.0 < mse < math.inf or data_norm == 0.0:
        raise PrivacyConfigError(f"mse and data_norm must be positive and finite, got {mse!r} and {data_norm!r}.")
    half = 0.5 * dimension
    return math.sqrt(mse * half / float(gammaincinv(half, gamma))) / data_norm


def _least_noise(levels: Sequence[tuple[float, float, int]], observed: int) -> list[tuple[float, float]]:
    total = sum(steps for _, _, steps in levels)
    if isinstance(observed, bool) or observed != int(observed) or not 0 <= observed <= total:
        raise PrivacyConfigError(
            f"observed={observed!r} must be a whole number between 0 and the {total} steps of the ledger."
        )
    weights, left = [], observed
    for sigma, _, steps in levels:
        weights.append((sigma, float(min(steps, left))))
        left -= min(steps, left)
    return weights


def _check_size(dimension: int, data_norm: float) -> None:
    if isinstance(dimension, bool) or dimension != int(dimension) or dimension < 1:
        raise PrivacyConfigError(
            f"dimension must be a whole number >= 1, got {dimension!r}: how many numbers a sample consists of."
        )
    if not 0.0 <= data_norm < math.inf:
        raise PrivacyConfigError(f"data_norm must be finite and >= 0, got {data_norm!r}: the L2 norm of a sample.")

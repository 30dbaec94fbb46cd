"""What "the standard deviation" of complex noise means, and what an accountant makes of it."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lightning_dp.errors import PrivacyConfigError

__all__ = ("NoiseConvention", "per_part_noise_multiplier")

NoiseConvention = Literal["per_part", "total"]


def per_part_noise_multiplier(noise_multiplier: float, noise_convention: NoiseConvention = "per_part") -> float:
    """The noise multiplier that accountants take, for complex Gaussian noise described by either convention.

    C^n is R^2n with the same distances. Noise with a standard deviation s on each real part therefore has the sensitivity
    index ``psi = sensitivity / s``, exactly as on real numbers. Where the standard deviation of the complex number is meant,
    ``E|z|^2 = tau^2``, each part has only ``tau / sqrt(2)``: ``psi = sqrt(2) sensitivity / tau``. Taking the one for the other
    understates psi by sqrt(2). Everything in this package is per part; this is for numbers from elsewhere.

    The noise is not touched: the function says what it is worth.

    Args:
        noise_multiplier: standard deviation over the sensitivity, under the convention.
        noise_convention: ``"per_part"``: of the real part, and of the imaginary part; ``"total"``: of the complex number.

    Returns:
        The multiplier for :class:`~lightning_dp.accounting.GaussianEvent` and for a strategy.

    Raises:
        PrivacyConfigError: for an unknown convention, or a multiplier that is negative or not finite.

    Example:
        >>> round(per_part_noise_multiplier(1.0, "total"), 4)
        0.7071
    """
    if noise_convention not in get_args(NoiseConvention):
        raise PrivacyConfigError(
            f"noise_convention={noise_convention!r} is unknown; choose one of {', '.join(get_args(NoiseConvention))}."
        )
    if not 0.0 <= noise_multiplier < math.inf:
        raise PrivacyConfigError(f"noise_multiplier={noise_multiplier!r} must be a finite number >= 0.")
    return noise_multiplier if noise_convention == "per_part" else noise_multiplier / math.sqrt(2.0)

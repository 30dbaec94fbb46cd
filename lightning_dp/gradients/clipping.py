"""Clipping: from the units' gradient norms to the coefficients of the sum, and the sensitivity that they guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("CLIPPING_NAMES", "Clipping", "ClippingName")

ClippingName = Literal["flat", "per_layer", "automatic"]
CLIPPING_NAMES: tuple[ClippingName, ...] = ("flat", "per_layer", "automatic")
STABILITY = 0.01  # gamma of automatic clipping
SMALLEST = 1e-8  # below it, a norm whose squares underflowed to zero could exceed the bound
ROUND_UP = 1.0 + 2.0**-20  # norms are rounded up: the coefficient may not exceed bound / norm by a rounding error


@dataclass(frozen=True)
class Clipping:
    """How a unit's gradient is bounded.

    **Guarantee**: for any gradients whatever, each unit's coefficients make its contribution to the sum at most
    ``max_grad_norm`` in L2 norm over all parameters together, so adding or removing one unit moves the sum by at most
    :attr:`sensitivity`. The noise takes its scale from this same object; no second copy of the bound exists that could
    go out of step with it.

    Args:
        max_grad_norm: the bound C > 0.
        name: ``"flat"``: scale by ``min(1, C / norm)`` (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).
            ``"per_layer"``: the same for each of L layers by itself with the bound ``C / sqrt(L)`` (McMahan et al. 2018,
            arXiv 1710.06963), L counting modules that own trainable parameters.
            ``"automatic"``: scale by ``C / (norm + 0.01)``, so that every unit counts alike and C is only a step size
            (Bu et al. 2023, arXiv 2206.07136, AUTO-S).

    Raises:
        PrivacyConfigError: for a bound that is not positive and finite, or an unknown name.
    """

    max_grad_norm: float
    name: ClippingName = "flat"

    def __post_init__(self) -> None:
        number = isinstance(self.max_grad_norm, (int, float)) and not isinstance(self.max_grad_norm, bool)
        if not (number and SMALLEST <= self.max_grad_norm < math.inf):
            raise PrivacyConfigError(
                f"max_grad_norm={self.max_grad_norm!r} bounds nothing: it must be a finite number of at least "
                f"{SMALLEST:g} (float32 gradients much smaller than that have squares that vanish). 1.0 is a common "
                "start; smaller values with a larger learning rate often train better."
            )
        if self.name not in CLIPPING_NAMES:
            raise PrivacyConfigError(f"unknown clipping {self.name!r}; choose one of {', '.join(CLIPPING_NAMES)}")

    @property
    def sensitivity(self) -> float:
        """The most by which one unit can move the clipped sum, in L2 norm."""
        return self.max_grad_norm

    @property
    def by_layer(self) -> bool:
        """Whether each layer is clipped by itself."""
        return self.name == "per_layer"

    def coefficients(self, squared_norms: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of every unit in every group of parameters.

        Args:
            squared_norms: ``(G, U)``, one row for each layer, or a single row.

        Returns:
            Coefficients ``(G, U)``, and the boolean ``(U,)`` of units whose norm is finite. A unit that is not finite
            gets coefficient zero everywhere: one such sample must neither destroy the model nor escape the bound.
        """
        finite = torch.isfinite(squared_norms.sum(0))
        norms = torch.where(finite, squared_norms, squared_norms.new_zeros(())).sqrt() * ROUND_UP
        bound = self.max_grad_norm / math.sqrt(norms.shape[0])
        scale = bound / (norms + STABILITY) if self.name == "automatic" else (bound / norms).clamp(max=1.0)
        return torch.where(finite, scale, scale.new_zeros(())), finite

"""What clipping does to the sum of gradients: a measurement for study, which is not private."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.reals import as_real

__all__ = ("Bias", "BiasProbe")


@dataclass(frozen=True)
class Bias:
    """The bias of one step's clipped sum (Knolle et al. 2023, arXiv 2308.12018). It is not private.

    Attributes:
        norm: ``||sum_u clip(g~_u) - sum_u g_u|| / B``, where ``g~`` is what was clipped and ``g`` the units' plain gradients.
        bound: ``sum_u max(0, ||g_u|| - C) / B``: the most that ``norm`` can be where plain gradients are clipped flat.
        cosine: of the angle between the two sums; 1 where either is zero.
    """

    norm: float
    bound: float
    cosine: float


class BiasProbe:
    """Adds up the units' plain, unclipped gradients beside the engine's clipped sum.

    No guarantee: what it measures depends on private data without noise. Nothing of it reaches the gradient. Units whose
    gradient is not finite are left out, as they are of the clipped sum.
    """

    def __init__(self) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._excess = 0.0

    def forget(self) -> None:
        """Starts afresh."""
        self._sums, self._excess = {}, 0.0

    def observe(
        self,
        norms: Mapping[nn.Parameter, Tensor],
        kept: Mapping[nn.Parameter, Sequence[Contribution]],
        scale: float | Tensor,
        weights: Tensor | None,
        bound: float,
    ) -> None:
        """Adds one physical batch.

        Args:
            norms: squared norms ``(U,)`` of each parameter's units.
            kept: their contributions.
            scale: turns a unit's share of the loss into its own loss.
            weights: ``(U,)``, or ``None`` for ones.
            bound: C.
        """
        squares = torch.stack(list(norms.values())).sum(0) * scale**2
        finite = torch.isfinite(squares)
        factors = torch.where(finite, torch.ones_like(squares), 0.0) * (1.0 if weights is None else weights.to(squares))
        lengths = torch.where(finite, squares, 0.0).sqrt()
        self._excess += float((factors * (lengths - bound).clamp(min=0)).sum())
        for parameter, uses in kept.items():
            for use in uses:
                part = use.keep(finite).weighted_sum(factors * scale)
                before = self._sums.get(parameter)
                self._sums[parameter] = part if before is None else before + part

    def measure(
        self,
        clipped: Mapping[nn.Parameter, Tensor],
        expected_batch_size: float,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Bias:
        """Compares with the clipped sum, before the engine releases it: it has no noise yet.

        Args:
            clipped: by parameter.
            expected_batch_size: B.
            reduce: sums a flat tensor over all ranks.
        """
        pairs = [(self._sums.get(p, torch.zeros_like(as_real(total))), total) for p, total in clipped.items()]
        flat = torch.cat(
            [torch.cat([as_real(t.detach()).flatten().double() for t in side]) for side in zip(*pairs, strict=True)]
        )
        flat = torch.cat([flat, flat.new_tensor([self._excess])])
        flat = flat if reduce is None else reduce(flat)
        excess = float(flat[-1])
        plain, bounded = flat[:-1].chunk(2)
        sizes = float(plain.norm() * bounded.norm())
        cosine = float(plain @ bounded) / sizes if sizes else 1.0
        return Bias(float((bounded - plain).norm()) / expected_batch_size, excess / expected_batch_size, cosine)

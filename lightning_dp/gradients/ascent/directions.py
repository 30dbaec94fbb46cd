"""Which way, and how far, each unit's parameters are moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution, EmbeddingRows, OuterProduct

__all__ = ("Directions",)


class Directions:
    """Each unit's displacement ``radius * g_u / ||g_u||`` of every parameter, kept in the form in which the gradient is.

    A unit without a gradient (norm zero), or whose gradient is not finite, is not moved: its second gradient is its first.

    Args:
        gradients: the contributions of each parameter in the first pass.
        norms: the units' gradient norms ``(U,)`` over all parameters together.
        radius: how far a unit is moved.
    """

    def __init__(self, gradients: Mapping[nn.Parameter, Sequence[Contribution]], norms: Tensor, radius: float) -> None:
        self.gradients = gradients
        moved = torch.isfinite(norms) & (norms > 0)
        self.steps = torch.where(moved, radius / torch.where(moved, norms, norms.new_ones(())), norms.new_zeros(()))

    def full(self, parameter: nn.Parameter) -> Tensor | None:
        """The displacement ``(U, *shape)``: as much memory as U copies of the parameter. ``None`` where it is zero."""
        total = self.unscaled(parameter)
        return None if total is None else self.scaled(total)

    def unscaled(self, parameter: nn.Parameter) -> Tensor | None:
        """The gradients ``(U, *shape)`` along which the displacement lies."""
        uses = self.gradients.get(parameter, ())
        if not uses:
            return None
        total = uses[0].all_units()
        for use in uses[1:]:
            total = total + use.all_units()
        return total

    def scaled(self, tensor: Tensor) -> Tensor:
        """What was computed with gradients ``(U, ...)`` as it is with displacements, where it is linear in them."""
        return tensor * self.steps.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))

    def looked_up(self, parameter: nn.Parameter, index: Tensor) -> Tensor | None:
        """Rows of a table's displacement ``(U, T, d)`` for indices ``(U, T)``, without building the units' tables."""
        uses = self.gradients.get(parameter, ())
        if not all(isinstance(use, EmbeddingRows) for use in uses):
            full = self.full(parameter)
            unit = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
            return None if full is None else full[unit, index]
        total: Tensor | None = None
        for use in uses:
            assert isinstance(use, EmbeddingRows)
            part = (index.unsqueeze(2) == use.index.unsqueeze(1)).to(use.b.dtype) @ use.b
            total = part if total is None else total + part
        return None if total is None else self.scaled(total)

    def applied(self, parameter: nn.Parameter, x: Tensor) -> Tensor | None:
        """``x_u D_u^T`` ``(U, K, p)`` for inputs ``x`` ``(U, K, d)`` and a parameter's displacement D read as ``(p, d)``.

        From the outer products that the gradient is a sum of, where that is less work than building it.
        """
        uses = self.gradients.get(parameter, ())
        if not uses:
            return None
        if not all(isinstance(use, OuterProduct) and _is_thin(use, x.shape[1]) for use in uses):
            full = self.unscaled(parameter)
            assert full is not None
            return self.scaled(x @ full.flatten(2).mT)
        total: Tensor | None = None
        for use in uses:
            assert isinstance(use, OuterProduct)
            part = (x @ use.a.flatten(1, 2).mT) @ use.b.flatten(1, 2)
            total = part if total is None else total + part
        assert total is not None
        return self.scaled(total)


def _is_thin(use: OuterProduct, rows: int) -> bool:
    length, d, p = use.sizes
    return use.held is None and use.groups == 1 and rows * length * (d + p) <= (length + rows) * d * p

"""Outer products of inputs and output gradients, position by position: linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_dp.gradients.contributions.base import Contribution
from lightning_dp.gradients.contributions.product_sum import ProductSum
from lightning_dp.gradients.reals import real_rows

__all__ = ("OuterProduct",)


class OuterProduct(ProductSum):
    """``gradient_u = sum_t b[u, t] a[u, t]^T`` for each of G groups.

    Args:
        a: inputs ``(U, G, T, d)``.
        b: output gradients ``(U, G, T, p)``.
        shape: the parameter's shape, with ``G * p * d`` elements, output channels first.
    """

    def __init__(self, a: Tensor, b: Tensor, shape: torch.Size) -> None:
        super().__init__(a, b, shape, (a.shape[2], a.shape[3], b.shape[3]))

    @override
    def real(self) -> Contribution:
        if not (self.a.is_complex() or self.b.is_complex()):
            return self
        a, b = real_rows(self.a, self.b, position=2, feature=3)
        return OuterProduct(a, b, torch.Size((*self.shape, 2)))

    @override
    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.a[start:stop], self.b[start:stop]

    @override
    def sum_records(self, weights: Tensor, out: Tensor) -> None:
        a, b, factor = self.a, self.b, weights[:, None, None, None]
        groups, p, d = self.groups, b.shape[3], a.shape[3]
        a, b = (a * factor, b) if d <= p else (a, b * factor)  # the smaller of the two
        if groups == 1:
            out.view(p, d).addmm_(b.reshape(-1, p).t(), a.reshape(-1, d))
        else:
            left = b.permute(1, 3, 0, 2).reshape(groups, p, -1)
            out.view(groups, p, d).baddbmm_(left, a.transpose(0, 1).reshape(groups, -1, d))

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        uses = [o for o in (self, *others) if isinstance(o, OuterProduct) and o.held is None]
        if len(uses) <= len(others) or any(o.groups != self.groups for o in uses):
            return None
        return OuterProduct(torch.cat([o.a for o in uses], 2), torch.cat([o.b for o in uses], 2), self.shape)

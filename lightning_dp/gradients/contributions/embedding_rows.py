"""Embedding tables: a gradient that is zero but in a few rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_dp.gradients.contributions.base import Contribution, row_squares, zero_outside

__all__ = ("EmbeddingRows",)


class EmbeddingRows(Contribution):
    """``gradient_u = sum_t e_{index[u, t]} b[u, t]^T``: an embedding table touched at a few rows.

    Args:
        index: int64 ``(U, T)``.
        b: output gradients ``(U, T, d)``; rows of the padding index are zero already.
        shape: the table's shape ``(V, d)``.
    """

    def __init__(self, index: Tensor, b: Tensor, shape: torch.Size) -> None:
        self.index, self.b, self.shape = index, b, shape
        self.num_units = index.shape[0]
        self._unique: tuple[Tensor, Tensor, Tensor] | None = None

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        index, b = self.index[start:stop], self.b[start:stop]
        out = b.new_zeros(stop - start, *self.shape)
        unit = torch.arange(stop - start, device=b.device).unsqueeze(1).expand_as(index)
        return out.index_put_((unit, index), b, accumulate=True)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        unit, index, rows = self._rows()
        scaled = rows * weights.to(rows.dtype)[unit].unsqueeze(1)
        return rows.new_zeros(self.shape).index_add_(0, index, scaled)

    @property
    @override
    def is_record(self) -> bool:
        return True

    @override
    def scaled(self, factor: float) -> Contribution:
        return EmbeddingRows(self.index, self.b * factor, self.shape)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return EmbeddingRows(self.index, zero_outside(self.b, mask), self.shape)

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        if not all(type(o) is EmbeddingRows for o in others):
            return None
        uses = [self, *(o for o in others if isinstance(o, EmbeddingRows))]
        return EmbeddingRows(torch.cat([o.index for o in uses], 1), torch.cat([o.b for o in uses], 1), self.shape)

    @override
    def squared_norms(self) -> Tensor:
        unit, _, rows = self._rows()
        return self.b.new_zeros(self.num_units).index_add_(0, unit, row_squares(rows))

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit, table index and gradient of each distinct row.

        Equal indices within a unit are added up first: a token that occurs twice has one gradient row, not two; and two
        huge occurrences that cancel must do so before they meet, and round away, what other units put into that row.
        """
        if self._unique is None:
            unit = torch.arange(self.num_units, device=self.index.device).unsqueeze(1)
            keys, slot = (unit * self.shape[0] + self.index).flatten().unique(return_inverse=True)  # type: ignore[no-untyped-call]
            rows = self.b.new_zeros(keys.numel(), self.shape[1]).index_add_(0, slot, self.b.flatten(0, 1))
            self._unique = keys // self.shape[0], keys % self.shape[0], rows
        return self._unique

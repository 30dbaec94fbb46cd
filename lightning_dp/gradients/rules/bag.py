"""Bags of embeddings: sums, means and maxima of table rows, one bag for each row of the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.gradients.contributions import Contribution
from lightning_dp.gradients.contributions.base import row_squares
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("TableRows", "embedding_bag_rule")


class TableRows(Contribution):
    """A table touched by each unit at its own, differing, number of rows: one entry a unit and table row.

    Args:
        unit: int64 ``(n,)``, which unit an entry belongs to.
        index: int64 ``(n,)``, which row of the table it touches. No pair (unit, index) occurs twice.
        rows: the gradient there, ``(n, d)``.
        num_units: U.
        shape: the table's shape ``(V, d)``.
    """

    def __init__(self, unit: Tensor, index: Tensor, rows: Tensor, num_units: int, shape: torch.Size) -> None:
        self.unit, self.index, self.rows = unit, index, rows
        self.num_units, self.shape = num_units, shape

    @classmethod
    def from_terms(
        cls, unit: Tensor, index: Tensor, terms: Tensor, num_units: int, shape: torch.Size, column: Tensor | None = None
    ) -> TableRows:
        """Adds up the terms ``(m, d)`` (or, with ``column``, single entries ``(m,)``) of equal unit and index.

        Equal indices come first: a word that occurs twice has one gradient row; and two huge occurrences that cancel must
        do so before they meet, and round away, what other units put into that row.
        """
        keys, slot = (unit * shape[0] + index).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        rows = terms.new_zeros(keys.numel(), shape[1])
        if column is None:
            rows.index_add_(0, slot, terms)
        else:
            rows.index_put_((slot, column), terms, accumulate=True)
        return cls(keys // shape[0], keys % shape[0], rows, num_units, shape)

    @override
    def squared_norms(self) -> Tensor:
        squares = self.rows.new_zeros(self.num_units)
        return squares.index_add_(0, self.unit, row_squares(self.rows)) if len(self.rows) else squares

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        mine = (self.unit >= start) & (self.unit < stop)
        out = self.rows.new_zeros(stop - start, *self.shape)
        out[self.unit[mine] - start, self.index[mine]] = self.rows[mine]
        return out

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        scaled = self.rows * weights.to(self.rows.dtype)[self.unit].unsqueeze(1)
        return self.rows.new_zeros(self.shape).index_add_(0, self.index, scaled)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        kept = mask[self.unit]
        return TableRows(self.unit[kept], self.index[kept], self.rows[kept], self.num_units, self.shape)

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        uses = [self, *(o for o in others if isinstance(o, TableRows))]
        if len(uses) != 1 + len(others):
            return None
        unit, index, rows = (torch.cat(parts) for parts in zip(*((o.unit, o.index, o.rows) for o in uses), strict=True))
        return TableRows.from_terms(unit, index, rows, self.num_units, self.shape)


@register_rule(nn.EmbeddingBag)
def embedding_bag_rule(call: LayerCall) -> dict[str, Contribution]:
    """Every entry of a bag gets the bag's gradient: whole, weighted or divided; for the maximum only where it was taken.

    The padding row gets no gradient and does not count in a mean, as in PyTorch.
    """
    module, grad, units = call.module, call.grad, call.units
    assert isinstance(module, nn.EmbeddingBag)
    arguments = call.arguments()
    index, bag, starts = _bags(module, arguments["input"], arguments["offsets"], grad.shape[0])
    owner = units.per_row(torch.arange(units.num_units, device=grad.device), grad.shape[0], call.name)
    shape = module.weight.shape
    weights = arguments["per_sample_weights"]
    counts = torch.ones_like(index, dtype=torch.bool) if module.padding_idx is None else index != module.padding_idx
    if module.mode == "max":
        # The same function again: of two rows with an equal entry, only one had the gradient.
        table = module.weight.detach()
        taken = torch.embedding_bag(table, index, starts, False, 2, False, None, False, module.padding_idx)[3]
        filled = torch.bincount(bag[counts], minlength=grad.shape[0]) > 0
        column = torch.arange(shape[1], device=grad.device).expand_as(grad)[filled].flatten()
        unit = owner[filled].repeat_interleave(shape[1])
        return {
            "weight": TableRows.from_terms(
                unit, taken[filled].flatten(), grad[filled].flatten(), units.num_units, shape, column
            )
        }
    if module.mode == "mean":
        size = torch.bincount(bag[counts], minlength=grad.shape[0]).clamp(min=1)
        grad = grad / size.to(grad.dtype).unsqueeze(1)
    terms = grad[bag[counts]]
    if weights is not None:
        terms = terms * weights.flatten().to(grad.dtype)[counts].unsqueeze(1)
    return {"weight": TableRows.from_terms(owner[bag[counts]], index[counts], terms, units.num_units, shape)}


def _bags(
    module: nn.EmbeddingBag, index: Tensor, offsets: Tensor | None, num_bags: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The flat indices, the bag of each, and where each bag starts."""
    flat = index.flatten().long()
    if offsets is None:  # (bags, length)
        starts = torch.arange(num_bags, device=flat.device) * index.shape[1]
    else:  # with include_last_offset the last one only marks the end
        starts = offsets[:num_bags].long()
    ends = torch.cat([starts[1:], starts.new_tensor([flat.numel()])])
    if offsets is not None and module.include_last_offset:
        ends[-1] = offsets[-1]
    bag = torch.arange(num_bags, device=flat.device).repeat_interleave(ends - starts)
    return flat[: bag.numel()], bag, starts

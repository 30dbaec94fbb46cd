"""What one use of one parameter contributes to the units' gradients, without building them where that can be avoided.

A layer rule turns (input, output gradient) into contributions. The engine asks each for two things only: the units'
squared norms, and, once the clipping coefficients are known, the weighted sum over units. Both are computed from the
same records in the same precision, so that what is clipped is what is summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

__all__ = ("Contribution", "EmbeddingRows", "OuterProduct", "PerUnit", "squared_norms", "unit_chunks")

CHUNK_ELEMENTS = 1 << 24  # at most 64 MiB of float32 per-unit gradients at a time
ROUNDOFF = 2.0**-24  # unit roundoff of float32
CANCELLATION = 2.0**-13  # below this share of its terms, a Gram-matrix norm has lost too many digits
RESOLUTION = 2.0**-5  # a unit counts for at least this share of what its terms would give if their signs were random
USES_RESOLUTION = 2.0**-6  # the same for uses of one parameter that are summed one after the other
LOST = 2.0**-126  # the most that the square of one float32 can lose to underflow
BLOCK = 4096  # float32 squares are added up in blocks of this length: one long running sum stagnates


class Contribution(ABC):
    """One parameter's use in one module call, for all U units of a physical batch.

    Attributes:
        num_units: U.
        shape: the parameter's shape.
    """

    num_units: int
    shape: torch.Size

    @abstractmethod
    def per_unit(self, start: int, stop: int) -> Tensor:
        """The gradients of units ``start:stop``, shape ``(stop - start, *shape)``."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """``sum_u weights[u] * gradient_u``, shape ``shape``; ``weights`` is ``(U,)``."""

    @abstractmethod
    def keep(self, mask: Tensor) -> Contribution:
        """The same with every unit outside the boolean ``mask`` ``(U,)`` replaced by exact zeros.

        A weight of zero is not enough for a unit that is not finite: 0 * inf is NaN and would reach every parameter.
        """

    def squared_norms(self) -> Tensor:
        """The squared L2 norm of each unit's gradient, shape ``(U,)``."""
        return torch.cat([_squares(self.per_unit(a, b)) for a, b in unit_chunks(self.num_units, self.shape.numel())])

    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        """This and ``others`` (further uses of the same parameter) as one contribution, where the form allows it."""
        return None


class PerUnit(Contribution):
    """Gradients held as they are: biases, normalisation weights, whatever the generic rule returned."""

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients
        self.num_units = gradients.shape[0]
        self.shape = gradients.shape[1:]

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.gradients[start:stop]

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (weights.to(self.gradients.dtype) @ self.gradients.reshape(self.num_units, -1)).reshape(self.shape)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return PerUnit(_zero_outside(self.gradients, mask))

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        if not all(type(o) is PerUnit for o in others):
            return None
        total = self.gradients
        for other in others:
            total = total + other.per_unit(0, self.num_units)
        return PerUnit(total)


class OuterProduct(Contribution):
    """``gradient_u = sum_t b[u, t] a[u, t]^T`` for each of G groups: linear layers, and convolutions over patches.

    Args:
        a: inputs ``(U, G, T, d)``.
        b: output gradients ``(U, G, T, p)``.
        shape: the parameter's shape, with ``G * p * d`` elements, output channels first.
    """

    def __init__(self, a: Tensor, b: Tensor, shape: torch.Size) -> None:
        self.a, self.b, self.shape = a, b, shape
        self.num_units = a.shape[0]
        self._held: Tensor | None = None

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        product = self.b[start:stop].transpose(-1, -2) @ self.a[start:stop]
        return product.reshape(stop - start, *self.shape)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        if self._held is not None:
            return (weights.to(self._held.dtype) @ self._held.flatten(1)).reshape(self.shape)
        scaled = self.b * weights.to(self.b.dtype)[:, None, None, None]
        groups, p, d = self.b.shape[1], self.b.shape[3], self.a.shape[3]
        left = scaled.permute(1, 3, 0, 2).reshape(groups, p, -1)
        right = self.a.transpose(0, 1).reshape(groups, -1, d)
        return torch.bmm(left, right).reshape(self.shape)

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return OuterProduct(_zero_outside(self.a, mask), _zero_outside(self.b, mask), self.shape)

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        if not all(type(o) is OuterProduct and o.a.shape[1] == self.a.shape[1] for o in others):
            return None
        uses = [self, *(o for o in others if isinstance(o, OuterProduct))]
        return OuterProduct(torch.cat([o.a for o in uses], 2), torch.cat([o.b for o in uses], 2), self.shape)

    @override
    def squared_norms(self) -> Tensor:
        """Exact for T = 1; otherwise from Gram matrices or from the gradients themselves, whichever costs less."""
        length, d, p = self.a.shape[2], self.a.shape[3], self.b.shape[3]
        # Rounded up by what underflow may have hidden: a huge input times a tiny gradient is no tiny product.
        a_square, b_square = self.a.square().sum(-1) + d * LOST, self.b.square().sum(-1) + p * LOST
        if length == 1:
            return (a_square * b_square).sum((1, 2))
        a_norm, b_norm = a_square.sqrt(), b_square.sqrt()
        terms = (a_norm * b_norm).sum((1, 2)).square()
        norms = self._gram_norms(terms) if length * (d + p) < d * p else self._held_norms()
        norms = norms + ((p * LOST) ** 0.5 * a_norm.sum(2)).square().sum(1)
        norms = norms + ((d * LOST) ** 0.5 * b_norm.sum(2)).square().sum(1)
        # Terms that cancel leave a sum of the size of their rounding errors, and while they are being summed they push
        # the other units' digits out: a unit never counts as smaller than what that arithmetic can resolve.
        return torch.maximum(norms, terms * max(RESOLUTION / length**0.5, ROUNDOFF * length) ** 2)

    def _held_norms(self) -> Tensor:
        if self.num_units * self.shape.numel() <= CHUNK_ELEMENTS:
            self._held = self.per_unit(0, self.num_units)
            return _squares(self._held)
        return super().squared_norms()

    def _gram_norms(self, terms: Tensor) -> Tensor:
        norms = torch.cat(
            [
                ((self.a[i:j] @ self.a[i:j].mT) * (self.b[i:j] @ self.b[i:j].mT)).sum((1, 2, 3))
                for i, j in unit_chunks(self.num_units, 2 * self.a.shape[1] * self.a.shape[2] ** 2)
            ]
        )
        for unit in torch.nonzero(norms < CANCELLATION * terms).flatten().tolist():
            norms[unit] = _squares(self.per_unit(unit, unit + 1))[0]
        return norms


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

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return EmbeddingRows(self.index, _zero_outside(self.b, mask), self.shape)

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        if not all(type(o) is EmbeddingRows for o in others):
            return None
        uses = [self, *(o for o in others if isinstance(o, EmbeddingRows))]
        return EmbeddingRows(torch.cat([o.index for o in uses], 1), torch.cat([o.b for o in uses], 1), self.shape)

    @override
    def squared_norms(self) -> Tensor:
        unit, _, rows = self._rows()
        return self.b.new_zeros(self.num_units).index_add_(0, unit, _squares(rows))

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


def squared_norms(uses: Sequence[Contribution]) -> tuple[Tensor, Sequence[Contribution]]:
    """Squared norms ``(U,)`` of one parameter's units over all its uses in the pass, and the uses to sum later.

    Gradients of several uses (a module called twice, tied weights) are added *before* the norm: norms of the parts
    say nothing certain about the norm of the sum.
    """
    if len(uses) == 1:
        return uses[0].squared_norms(), uses
    merged = uses[0].merged(uses[1:])
    if merged is not None:
        return merged.squared_norms(), [merged]
    chunks = []
    for start, stop in unit_chunks(uses[0].num_units, uses[0].shape.numel()):
        total = uses[0].per_unit(start, stop)
        for use in uses[1:]:
            total = total + use.per_unit(start, stop)
        chunks.append(_squares(total))
    # The uses are summed one after the other, other units in between; see OuterProduct on terms that cancel.
    terms = torch.stack([use.squared_norms().sqrt() for use in uses]).sum(0)
    return torch.maximum(torch.cat(chunks), (USES_RESOLUTION * terms).square()), uses


def unit_chunks(num_units: int, elements_per_unit: int) -> Iterator[tuple[int, int]]:
    """Ranges of units whose per-unit tensors stay within the memory bound together."""
    size = max(1, CHUNK_ELEMENTS // max(1, elements_per_unit))
    for start in range(0, num_units, size):
        yield start, min(start + size, num_units)


def _squares(gradients: Tensor) -> Tensor:
    """Squared norms of the rows: by blocks, then over blocks pairwise.

    The library adds float32 squares to a few running sums. Over 10^7 like terms these come out up to 1.6 % too small
    (measured), which is a gradient beyond the bound.
    """
    flat = gradients.reshape(gradients.shape[0], -1)
    whole = flat.shape[1] - flat.shape[1] % BLOCK
    squares: Tensor = torch.linalg.vector_norm(flat[:, whole:], dim=1).square()
    if whole == 0:
        return squares
    blocks: Tensor = torch.linalg.vector_norm(flat[:, :whole].view(flat.shape[0], -1, BLOCK), dim=2)
    return squares + blocks.square().sum(1)


def _zero_outside(tensor: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *([1] * (tensor.dim() - 1))), tensor, tensor.new_zeros(()))

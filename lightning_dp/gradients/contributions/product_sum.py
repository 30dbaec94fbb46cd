"""Gradients that are sums of outer products over positions: the routes to their norms, and what rounding may hide."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_dp.gradients.contributions.base import (
    BLOCK,
    Contribution,
    row_squares,
    unit_chunks,
    zero_outside,
)
from lightning_dp.gradients.contributions.routes import Route, cheapest, route_costs
from lightning_dp.gradients.memory import Memory, nbytes

__all__ = ("Energies", "ProductSum", "energies", "resolution", "rounding")

Energies = tuple[Tensor, Tensor]
"""``||a[u, g, t]||^2`` and ``||b[u, g, t]||^2``, both ``(U, G, T)``."""

ROUNDOFF = 2.0**-24  # unit roundoff of float32
CANCELLATION = 2.0**-13  # below this share of its terms, a Gram-matrix norm has lost too many digits
RESOLUTION = 2.0**-5  # a unit counts for at least this share of what its terms would give if their signs were random
STAGNATES = 1 << 24  # elements, beyond which a running sum of float32 squares is too small by more than that
LOST = 2.0**-126  # the most that the square of one float32 can lose to underflow


class ProductSum(Contribution):
    """``gradient_u = sum_t b[u, t] a[u, t]^T`` for each of G groups, ``a`` of d elements, ``b`` of p, T positions.

    Args:
        a, b: what was recorded, by unit: ``(U, ...)``. A subclass knows how positions are read off it.
        shape: the parameter's shape, with ``G * p * d`` elements.
        sizes: ``(T, d, p)``.
        unfolds: whether reading positions off the records means copying patches.
    """

    def __init__(
        self, a: Tensor, b: Tensor, shape: torch.Size, sizes: tuple[int, int, int], unfolds: bool = False
    ) -> None:
        self.a, self.b, self.shape, self.sizes, self.unfolds = a, b, shape, sizes, unfolds
        self.num_units = a.shape[0]
        self.groups = shape.numel() // (sizes[1] * sizes[2])
        self.route: Route = "direct" if sizes[0] == 1 and not unfolds else cheapest(self.costs(), may_hold=False)
        self.held: Tensor | None = None
        """The units' gradients ``(U, G * p * d)``, once the route is ``"held"`` and the norms are known."""
        self._memory: Memory | None = None
        self._bounds: tuple[Tensor, Tensor] | None = None
        self._most_terms: Tensor | None = None

    def costs(self) -> Mapping[Route, float]:
        """What each route costs for one unit and group, norm and sum together, in multiply-adds."""
        return route_costs(*self.sizes, units=self.num_units * self.groups)

    @abstractmethod
    def columns(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """``a`` ``(S, G, T, d)`` and ``b`` ``(S, G, T, p)`` of S units."""

    @abstractmethod
    def sum_records(self, weights: Tensor, out: Tensor) -> None:
        """Adds ``sum_u weights[u] * gradient_u`` to ``out`` straight from the records."""

    def in_shape(self, gradients: Tensor) -> Tensor:
        """``(S, G * p * d)`` in the order of :meth:`columns` as ``(S, *shape)``."""
        return gradients.view(gradients.shape[0], *self.shape)

    def most_energy(self) -> Tensor:
        """An upper bound ``(U,)`` on the sum of ``||a[u, g, t]||^2`` over groups and positions."""
        return energy_bound(self.a)

    def gram_matrices(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inner products of ``a``, and of ``b``, between positions of S units, both ``(S * G, T, T)``; the second is ours."""
        a, b = (t.flatten(0, 1) for t in self.columns(start, stop))
        return torch.bmm(a, a.mT), torch.bmm(b, b.mT)

    @property
    def gram_elements(self) -> int:
        """The most elements of one temporary that :meth:`gram_matrices` makes for a unit."""
        length, d, _ = self.sizes
        return max(2 * length**2, length * d if self.unfolds else 0) * self.groups

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Writes the gradients of units ``start:stop`` to ``out`` ``(S, G * p * d)``, contiguous."""
        _, d, p = self.sizes
        for first, last in self._chunks(1, start, stop):
            a, b = self.columns(first, last)
            torch.bmm(b.flatten(0, 1).mT, a.flatten(0, 1), out=out[first - start : last - start].view(-1, p, d))

    @override
    def choose_route(self, memory: Memory) -> None:
        self._memory = memory
        if self.route != "direct" and cheapest(self.costs()) == "held":
            wanted = self.num_units * self.shape.numel() * self.a.element_size()
            if memory.hold(wanted, nbytes(self.a, self.b)):
                self.route = "held"

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        if self.held is not None:
            return self.in_shape(self.held[start:stop])
        return self.in_shape(self._written(start, stop))

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        out = self.b.new_zeros(self.shape)
        self.add_weighted_sum(weights, out)
        return out

    @property
    @override
    def is_record(self) -> bool:
        return self.held is None

    @override
    def all_units(self) -> Tensor:
        return self.in_shape(self.flat())

    def flat(self) -> Tensor:
        """The gradients of all units ``(U, G * p * d)``, in the order of :meth:`columns`."""
        if self.held is None:
            self.held = self._built()
        return self.held

    @override
    def scaled(self, factor: float) -> Contribution:
        if self.held is not None:  # the records are gone
            return super().scaled(factor)
        scaled = copy.copy(self)
        scaled.b = self.b * factor
        scaled.doubtful = scaled._bounds = scaled._most_terms = None  # set again with the norms
        return scaled

    @override
    def added_up(self, factor: float, others: Sequence[tuple[float, Contribution]]) -> Contribution:
        total = self.flat().mul_(factor)  # its own buffer: what is mixed is used up
        for other_factor, other in others:
            if type(other) is type(self) and other.layout == self.layout:
                total.add_(other.flat(), alpha=other_factor)
            else:
                self.in_shape(total).add_(other.all_units(), alpha=other_factor)
        return HeldProducts(total, self)

    @property
    def layout(self) -> object:
        """Two contributions of equal layout have their elements in the same order."""
        return None

    @override
    def add_weighted_sum(self, weights: Tensor, out: Tensor) -> None:
        if out.dtype != self.b.dtype:
            super().add_weighted_sum(weights, out)
        elif self.held is None:
            self.sum_records(weights.to(out.dtype), out)
        else:
            total = torch.mv(self.held.t(), weights.to(out.dtype))
            out.add_(self.in_shape(total.unsqueeze(0))[0])

    @override
    def keep(self, mask: Tensor) -> Contribution:
        kept = copy.copy(self)
        kept.a, kept.b = zero_outside(self.a, mask), zero_outside(self.b, mask)
        kept.held = None if self.held is None else zero_outside(self.held, mask)
        return kept

    @override
    def squared_norms(self) -> Tensor:
        norms = self.norms()
        self.drop_if_held()
        return norms

    def norms(self) -> Tensor:
        """:meth:`squared_norms`, with the records still there."""
        _, d, p = self.sizes
        if self.route == "direct":
            a, b = self.columns(0, self.num_units)
            return ((energies(a) + d * LOST) * (energies(b) + p * LOST)).sum((1, 2))
        if self.route == "gram":
            norms, found = self._gram()
            terms = self._bound(found)
            self.doubtful = norms < CANCELLATION * terms
        else:
            norms = self._hold() if self.route == "held" else self._stream()
            if self.nothing_cancels(norms):
                return norms
        return self.never_below_rounding(norms)

    def never_below_rounding(self, norms: Tensor) -> Tensor:
        """Squared norms ``(U,)`` of which none is smaller than what the arithmetic of these sums can resolve.

        Terms that cancel leave a sum of the size of their rounding errors, and while they are being summed they push the
        other units' digits out.
        """
        if self._bounds is None:
            self._bound(self._positions())
        return self.bounded(norms)

    def bounded(self, norms: Tensor, start: int = 0) -> Tensor:
        """Norms of the units from ``start`` on, raised to the bounds that were found for all, if that was needed."""
        if self._bounds is None:
            return norms
        lost, least = (bound[start : start + len(norms)] for bound in self._bounds)
        return torch.maximum(norms + lost, least)

    def nothing_cancels(self, norms: Tensor) -> bool:
        """Whether squared norms ``(U,)`` are so large, beside a bound on their terms, that rounding and underflow do not count.

        Nearly always so, and much cheaper to see than each position's energy. Asked on CPU only: the answer would stall
        a GPU.
        """
        if self.a.device.type != "cpu":
            return False
        # The square of a norm above 1e-16 cannot have lost a part that matters to underflow.
        least = (self.most_terms() * resolution(self.sizes[0])).clamp_(min=1e-16)
        return bool((norms >= least).all())

    def most_terms(self) -> Tensor:
        """No less than the square of the sum of the terms' norms, ``(U,)``."""
        if self._most_terms is None:
            self._most_terms = self.most_energy() * energy_bound(self.b)
        return self._most_terms

    def _bound(self, found: Energies) -> Tensor:
        lost, terms = rounding(found, self.sizes)
        self._bounds = lost, terms * resolution(self.sizes[0])
        return terms

    def drop_if_held(self) -> None:
        """The records are no longer needed where gradients are held: this is the memory that they take instead."""
        if self.held is not None:
            # New ones without elements: a view of no elements would keep all that it is a view of.
            self.a, self.b = (t.new_empty(t.shape[0], 0, *t.shape[2:]) for t in (self.a, self.b))

    @override
    def repaired(self, norms: Tensor) -> Tensor:
        if self.doubtful is None:
            return norms
        norms = norms.clone()
        for start, stop in self._chunks(self.shape.numel()):
            units = torch.nonzero(self.doubtful[start:stop]).flatten().tolist()
            # Many at once: building them all costs less than going from one to the next.
            many = 4 * len(units) >= stop - start
            for first, last in [(start, stop)] if many else [(start + u, start + u + 1) for u in units]:
                exact = self.bounded(row_squares(self.per_unit(first, last)), first)
                norms[first:last] = torch.where(self.doubtful[first:last], exact, norms[first:last])
        return norms

    def _chunks(self, elements: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Ranges of units for which ``elements`` a unit, and the patches of all, stay within the memory bound."""
        length, d, _ = self.sizes
        patches = length * d * self.groups if self.unfolds else 0
        stop = self.num_units if stop is None else stop
        ranges = unit_chunks(stop - start, max(elements, patches), self._chunk_elements)
        return ((start + first, start + last) for first, last in ranges)

    @property
    def _chunk_elements(self) -> int | None:
        """How many elements one temporary may have; ``None``: the usual bound."""
        return None if self._memory is None else self._memory.chunk_bytes // self.a.element_size()

    def _written(self, start: int, stop: int) -> Tensor:
        out = self.a.new_empty(stop - start, self.shape.numel())
        self.write(start, stop, out)
        return out

    def _gram(self) -> tuple[Tensor, Energies]:
        norms, found = [], []
        for start, stop in unit_chunks(self.num_units, self.gram_elements, self._chunk_elements):
            a_gram, b_gram = self.gram_matrices(start, stop)
            # The diagonals are the positions' energies; cloned, because the product is taken in place.
            diagonals = [
                t.diagonal(dim1=1, dim2=2).clone().view(stop - start, self.groups, -1) for t in (a_gram, b_gram)
            ]
            found.append((diagonals[0], diagonals[1]))
            norms.append(b_gram.mul_(a_gram).view(stop - start, -1).sum(1))
        return torch.cat(norms), _joined(found)

    def _built(self) -> Tensor:
        held = self.a.new_empty(self.num_units, self.shape.numel())
        self.write(0, self.num_units, held)
        return held

    def _hold(self) -> Tensor:
        self.held = self._built()
        return row_squares(self.held)

    def _stream(self) -> Tensor:
        norms = []
        for start, stop in unit_chunks(self.num_units, self.shape.numel(), self._chunk_elements):
            norms.append(row_squares(self._written(start, stop)))
        return torch.cat(norms)

    def _positions(self) -> Energies:
        columns = (self.columns(start, stop) for start, stop in self._chunks(1))
        return _joined([(energies(a), energies(b)) for a, b in columns])


class HeldProducts(Contribution):
    """Gradients that were built from sums of outer products, in their order of elements.

    Args:
        gradients: ``(U, G * p * d)``.
        source: knows how they lie in the parameter's shape.
    """

    def __init__(self, gradients: Tensor, source: ProductSum) -> None:
        self.gradients, self.source, self.shape = gradients, source, source.shape
        self.num_units = gradients.shape[0]

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.source.in_shape(self.gradients[start:stop])

    @override
    def squared_norms(self) -> Tensor:
        return row_squares(self.gradients)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        total = torch.mv(self.gradients.t(), weights.to(self.gradients.dtype))
        return self.source.in_shape(total.unsqueeze(0))[0]

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return HeldProducts(zero_outside(self.gradients, mask), self.source)


def resolution(length: int) -> float:
    """The least share of its squared terms that the square of a sum of ``length`` terms can resolve, generously."""
    share: float = max(RESOLUTION / length**0.5, ROUNDOFF * length)
    return share * share


def rounding(found: Energies, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """What the squares of the units' terms may have lost to underflow, and the square of the sum of their norms, ``(U,)``.

    Norms are rounded up by the former: a huge input times a tiny gradient is no tiny product.

    Args:
        found: energies of the positions.
        sizes: ``(T, d, p)``.
    """
    _, d, p = sizes
    a_norm, b_norm = (found[0] + d * LOST).sqrt_(), (found[1] + p * LOST).sqrt_()
    terms = (a_norm * b_norm).sum((1, 2)).square()
    lost = ((p * LOST) ** 0.5 * a_norm.sum(2)).square().sum(1) + ((d * LOST) ** 0.5 * b_norm.sum(2)).square().sum(1)
    return lost, terms


def energy_bound(rows: Tensor) -> Tensor:
    """No less than the squared norms of ``(U, ...)``: in one pass, whose running sums may come out some per cent too small."""
    if rows[0].numel() > STAGNATES:
        return row_squares(rows)
    norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.square_().mul_(1.1)


def energies(rows: Tensor) -> Tensor:
    """Squared norms over the last axis, ``(..., d) -> (...)``; long rows are added up by blocks."""
    if rows.shape[-1] > BLOCK:
        return row_squares(rows.flatten(0, -2)).view(rows.shape[:-1])
    if rows.stride(-1) != 1 and rows.shape[-1] > 1:  # measured: a norm over a strided axis is tens of times slower
        return rows.square().sum(-1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms.square_()


def _joined(found: Sequence[Energies]) -> Energies:
    if len(found) == 1:
        return found[0]
    return torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])

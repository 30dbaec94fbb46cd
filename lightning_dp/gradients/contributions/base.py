"""What one use of one parameter contributes to the units' gradients, without building them where that can be avoided.

A layer rule turns a recorded call into contributions. The engine asks each for two things only: the units' squared
norms, and, once the clipping coefficients are known, the weighted sum over units. Both are computed from the same
records in the same precision, so that what is clipped is what is summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from typing_extensions import override

from lightning_dp.gradients.memory import CHUNK_BYTES, Memory
from lightning_dp.gradients.reals import as_real

__all__ = (
    "CHUNK_ELEMENTS",
    "Contribution",
    "PerUnit",
    "add_weighted_sums",
    "joint_squared_norms",
    "mixed",
    "row_squares",
    "unit_chunks",
    "zero_outside",
)

CHUNK_ELEMENTS = CHUNK_BYTES // 4  # float32 per-unit gradients built at a time
USES_RESOLUTION = 2.0**-6  # a unit counts for at least this share of what its uses, summed one after the other, give
SMALL = 4096  # elements of a parameter, up to which calls cost more than copies
BLOCK = 4096  # float32 squares are added up in blocks of this length: one long running sum stagnates


class Contribution(ABC):
    """One parameter's use in one module call, for all U units of a physical batch.

    Attributes:
        num_units: U.
        shape: the parameter's shape.
        route: how the norms are had: ``"direct"``, ``"gram"``, ``"held"`` or ``"streamed"``.
        doubtful: boolean ``(U,)``, set with the norms: units whose norm lost too many digits on that route and has to be
            taken from :meth:`per_unit`. ``None`` where that cannot happen.
    """

    num_units: int
    shape: torch.Size
    route: str = "direct"
    doubtful: Tensor | None = None

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

    def all_units(self) -> Tensor:
        """The gradients of all units, ``(U, *shape)``: as much memory as U copies of the parameter."""
        return self.per_unit(0, self.num_units)

    @property
    def is_record(self) -> bool:
        """Whether the gradients are kept as what they are computed from, and not themselves."""
        return False

    def scaled(self, factor: float) -> Contribution:
        """The same with every gradient multiplied by ``factor``."""
        return PerUnit(self.all_units() * factor)

    def added_up(self, factor: float, others: Sequence[tuple[float, Contribution]]) -> Contribution:
        """This times ``factor`` and others of the same parameter times theirs, built and held."""
        total = self.all_units() * factor
        for other_factor, other in others:
            total.add_(other.all_units(), alpha=other_factor)
        return PerUnit(total)

    def real(self) -> Contribution:
        """The same over the parameter's real coordinates ``(*shape, 2)`` where it is complex. Asked before all else."""
        return self

    def choose_route(self, memory: Memory) -> None:  # noqa: B027  (most forms have one way only)
        """Called once before the norms, where there is more than one way to have them."""

    def squared_norms(self) -> Tensor:
        """The squared L2 norm of each unit's gradient, shape ``(U,)``."""
        return torch.cat([row_squares(self.per_unit(a, b)) for a, b in unit_chunks(self.num_units, self.shape.numel())])

    def repaired(self, norms: Tensor) -> Tensor:
        """``norms`` with those of the :attr:`doubtful` units computed again without loss of digits."""
        return norms

    def add_weighted_sum(self, weights: Tensor, out: Tensor) -> None:
        """Adds :meth:`weighted_sum` to ``out``, a contiguous tensor of the parameter's shape."""
        out.add_(self.weighted_sum(weights))

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
    def real(self) -> Contribution:
        return PerUnit(as_real(self.gradients)) if self.gradients.is_complex() else self

    @override
    def per_unit(self, start: int, stop: int) -> Tensor:
        return self.gradients[start:stop]

    @override
    def squared_norms(self) -> Tensor:
        return row_squares(self.gradients)

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (weights.to(self.gradients.dtype) @ self.gradients.reshape(self.num_units, -1)).reshape(self.shape)

    @override
    def add_weighted_sum(self, weights: Tensor, out: Tensor) -> None:
        if out.dtype != self.gradients.dtype:
            super().add_weighted_sum(weights, out)
            return
        out.view(-1).addmv_(self.gradients.reshape(self.num_units, -1).t(), weights.to(out.dtype))

    @override
    def keep(self, mask: Tensor) -> Contribution:
        return PerUnit(zero_outside(self.gradients, mask))

    @override
    def merged(self, others: Sequence[Contribution]) -> Contribution | None:
        if not all(type(o) is PerUnit for o in others):
            return None
        total = self.gradients
        for other in others:
            total = total + other.per_unit(0, self.num_units)
        return PerUnit(total)


def add_weighted_sums(each: Iterable[tuple[Contribution, Tensor, Tensor]]) -> None:
    """Adds the weighted sum of each contribution to its tensor: of many small ones with one product.

    Args:
        each: contributions, their weights ``(U,)``, and contiguous tensors of the parameters' shapes.
    """
    together: dict[tuple[int, torch.dtype], list[tuple[PerUnit, Tensor, Tensor]]] = {}
    for contribution, weights, out in each:
        small = type(contribution) is PerUnit and contribution.shape.numel() <= SMALL
        if isinstance(contribution, PerUnit) and small and contribution.gradients.dtype == out.dtype:
            together.setdefault((id(weights), out.dtype), []).append((contribution, weights, out))
        else:
            contribution.add_weighted_sum(weights, out)
    for (_, dtype), several in together.items():
        rows = torch.cat([c.gradients.reshape(c.num_units, -1) for c, _, _ in several], 1)
        total = torch.mv(rows.t(), several[0][1].to(dtype))
        parts = torch.split(total, [out.numel() for _, _, out in several])
        torch._foreach_add_([out.view(-1) for _, _, out in several], parts)


def mixed(first: Sequence[Contribution], second: Sequence[Contribution], share: float) -> Contribution | None:
    """``(1 - share) * (sum of first) + share * (sum of second)`` of one parameter, unit by unit, as one contribution.

    Kept as a sum of outer products or table rows where all are; otherwise added up and held, so that the norm is taken of
    exactly what is summed later. ``None`` if there is nothing to mix. What is in ``second`` is used up.
    """
    parts = [(share, c) for c in second if share] + [(1 - share, c) for c in first if share < 1]
    if not parts:
        return None
    own, others = parts[0], parts[1:]
    if not others:
        return own[1].scaled(own[0])
    if type(own[1]) is not PerUnit and all(type(c) is type(own[1]) for _, c in others):
        scaled = [c.scaled(factor) for factor, c in parts if c.is_record]
        merged = scaled[0].merged(scaled[1:]) if len(scaled) == len(parts) else None
        if merged is not None:
            return merged
    return own[1].added_up(own[0], others)


def joint_squared_norms(uses: Sequence[Contribution]) -> tuple[Tensor, Sequence[Contribution]]:
    """Squared norms ``(U,)`` of one parameter's units over several uses in the pass, and the uses to sum later.

    Gradients of several uses (a module called twice, tied weights) are added *before* the norm: norms of the parts
    say nothing certain about the norm of the sum.
    """
    merged = uses[0].merged(uses[1:])
    if merged is not None:
        return merged.repaired(merged.squared_norms()), [merged]
    chunks = []
    for start, stop in unit_chunks(uses[0].num_units, uses[0].shape.numel()):
        total = uses[0].per_unit(start, stop)
        for use in uses[1:]:
            total = total + use.per_unit(start, stop)
        chunks.append(row_squares(total))
    # The uses are summed one after the other, other units in between; see OuterProduct on terms that cancel.
    terms = torch.stack([use.repaired(use.squared_norms()).sqrt() for use in uses]).sum(0)
    return torch.maximum(torch.cat(chunks), (USES_RESOLUTION * terms).square()), uses


def unit_chunks(num_units: int, elements_per_unit: int, chunk: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of units whose per-unit tensors stay within the memory bound (in elements) together."""
    size = max(1, (CHUNK_ELEMENTS if chunk is None else chunk) // max(1, elements_per_unit))
    for start in range(0, num_units, size):
        yield start, min(start + size, num_units)


def row_squares(gradients: Tensor) -> Tensor:
    """Squared norms ``(R,)`` of ``(R, ...)``: by blocks, then over blocks pairwise.

    The library adds float32 squares to a few running sums. Over 10^7 like terms these come out up to 1.6 % too small
    (measured), which is a gradient beyond the bound.
    """
    flat = gradients.reshape(gradients.shape[0], -1)
    length = _block_length(flat.shape[1])
    rest = flat.shape[1] % length if length else flat.shape[1]
    whole = flat.shape[1] - rest
    squares: Tensor
    if whole == 0:
        squares = torch.linalg.vector_norm(flat, dim=1).square_()
        return squares
    blocks = flat[:, :whole].view(flat.shape[0], -1, length)
    squares = torch.linalg.vector_norm(blocks, dim=2).square_().sum(1)
    return squares + torch.linalg.vector_norm(flat[:, whole:], dim=1).square_() if rest else squares


@lru_cache(maxsize=4096)
def _block_length(elements: int) -> int:
    """How long blocks are: the longest that leaves no rest, where there is one of some length."""
    if elements <= BLOCK:
        return 0
    return next((length for length in range(BLOCK, BLOCK // 4, -1) if elements % length == 0), BLOCK)


def zero_outside(tensor: Tensor, mask: Tensor) -> Tensor:
    """``tensor`` ``(U, ...)`` with exact zeros in the units outside ``mask``."""
    return torch.where(mask.view(-1, *([1] * (tensor.dim() - 1))), tensor, tensor.new_zeros(()))

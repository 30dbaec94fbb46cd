"""Which rows of a tensor belong to which privacy unit.

Clipping bounds the influence of one *unit*. A unit is often one row of the batch, but it can also be an image with its
K augmentations, a volume whose slices are folded into the batch axis, a patient with several images, or a graph whose
rows are nodes. Every layer rule therefore sees its tensors through a :class:`UnitMap` and never assumes "row = unit".

Within one forward pass the layers of a graph network see different *kinds* of rows: one a graph, one a node, one an edge.
A :class:`UnitMap` then holds a map for each kind, and :class:`~lightning_dp.gradients.row_memory.RowMemory` says which one a
layer's rows are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError, PrivacyError

__all__ = ("MAIN", "UnitMap", "check_expected", "check_weights")

MAIN = "units"
"""The name of the kind of rows that ``UnitMap.rows`` describes."""


@dataclass(frozen=True)
class UnitMap:
    """The map row -> unit of one physical batch.

    Args:
        num_units: number of units U in the batch, at least 1.
        rows: ``None`` when rows are stored unit by unit, the same number for each (plain batches, augmentations
            and slices folded into axis 0). Otherwise an int64 tensor ``(R,)`` with the unit of every row, in any order
            and of any multiplicity (graphs, patients).
        terms: an int64 tensor ``(U,)``, how many of the terms that the loss averages (or sums) belong to each unit, where
            the loss is taken over samples and a unit owns several: its augmentations, a patient's images. ``None``
            means one term for each unit.
        kinds: further kinds of rows that layers see in the same pass, by name, each with the unit of every row as in
            ``rows``: ``{"nodes": batch.batch, "edges": batch.batch[edge_index[0]]}``. A layer rule never sees them: it
            gets the map of the one kind that its rows are of.
        folds: lengths of axes that the network may fold into axis 0 behind the rows, by name (the number of tokens, which
            changes from batch to batch with the padding).

    Raises:
        PrivacyConfigError: if ``num_units < 1``, a map holds a unit outside ``[0, num_units)``, or ``terms`` does not
            fit the units.
    """

    num_units: int
    rows: Tensor | None = None
    terms: Tensor | None = None
    kinds: Mapping[str, Tensor] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    _slot_cache: dict[int, _Slots] = field(default_factory=dict, init=False, repr=False, compare=False)
    _kind_cache: dict[str, UnitMap] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_units < 1:
            raise PrivacyConfigError(f"a batch needs at least one privacy unit, got num_units={self.num_units}")
        for rows in (self.rows, *self.kinds.values()):
            if rows is None:
                continue
            if rows.dim() != 1 or rows.dtype != torch.int64:
                raise PrivacyConfigError("UnitMap.rows must be a one-dimensional int64 tensor: the unit of each row")
            if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_units:
                raise PrivacyConfigError(f"UnitMap.rows names a unit outside [0, {self.num_units})")
        if self.terms is not None and (
            self.terms.shape != (self.num_units,) or self.terms.dtype != torch.int64 or bool((self.terms < 0).any())
        ):
            raise PrivacyConfigError(
                f"UnitMap.terms must be an int64 tensor ({self.num_units},): how many terms of the loss each unit has"
            )
        names = [MAIN, *self.kinds, *self.folds]
        if len(set(names)) < len(names):
            raise PrivacyConfigError(
                f"every kind of rows needs a name of its own, and {MAIN!r} is that of UnitMap.rows"
            )

    def counts(self) -> dict[str, int]:
        """How many rows of each kind the batch has."""
        main = self.num_units if self.rows is None else self.rows.numel()
        folded = {name: main * length for name, length in self.folds.items()}
        return {MAIN: main, **{kind: rows.numel() for kind, rows in self.kinds.items()}, **folded}

    def of_kind(self, kind: str) -> UnitMap:
        """The map of one kind of rows by itself."""
        if not self.kinds and not self.folds:
            return self
        rows = self.kinds.get(kind, self.rows)
        key = kind if kind in self.kinds else MAIN
        if key not in self._kind_cache:  # once for all layers: where each row goes is worked out once
            self._kind_cache[key] = UnitMap(self.num_units, rows)
        return self._kind_cache[key]

    def owners(self, num_rows: int, where: str = "a layer") -> Tensor:
        """The unit of each of ``num_rows`` rows: int64 ``(num_rows,)``."""
        return self.per_row(torch.arange(self.num_units), num_rows, where)

    def loss_scale(self, reduction: Literal["mean", "sum"]) -> float | Tensor:
        """The factor that turns a unit's share of the loss into the unit's own loss, the mean over its terms.

        A mean over R terms gives a unit with k of them 1/R of their sum: the factor is R/k. A sum gives the sum: 1/k. So
        neither the other units, nor how many there are, scale a unit's gradient before it is clipped, and it makes no
        difference to which of the two the loss is reduced.

        Returns:
            One factor for all units, or ``(U,)``; 0 for a unit without terms.
        """
        if self.terms is None:
            return float(self.num_units) if reduction == "mean" else 1.0
        total = float(self.terms.sum()) if reduction == "mean" else 1.0
        return torch.where(self.terms > 0, total / self.terms.double(), 0.0)

    def fold(self, num_rows: int, where: str) -> int:
        """How many rows stand for one batch row in a tensor of ``num_rows`` rows.

        Raises:
            PrivacyError: if the rows cannot be shared out evenly, so that nobody could say whose they are.
        """
        base = self.num_units if self.rows is None else self.rows.numel()
        if num_rows == 0 and base == 0:
            return 1  # a batch of graphs without a single edge
        if base == 0 or num_rows % base:
            raise PrivacyError(
                f"{where} saw {num_rows} rows along axis 0 for {self.num_units} privacy units, so a row cannot be "
                "assigned to its unit. Axis 0 must be the batch axis, alone or with other axes folded in behind it "
                "(batch-first layouts). Tensors shared by the whole batch, such as an embedding of torch.arange, must "
                "be expanded to one row per sample first."
            )
        return num_rows // base

    def by_unit(self, tensor: Tensor, where: str = "a layer", repeat: bool = False) -> Tensor:
        """Regroups ``(R, ...)`` to ``(U, K, ...)``: K rows for each unit.

        Absent rows are filled with zeros; or, with ``repeat``, with the unit's own first row, for tensors that a
        function is applied to again: how much is filled up depends on the other units, and zeros may lie outside
        its domain.
        """
        fold = self.fold(tensor.shape[0], where)
        if self.rows is None:
            return tensor.reshape(self.num_units, fold, *tensor.shape[1:])
        unit, slot, most, in_order = self._slots(fold, tensor.device)
        if in_order:
            return tensor.reshape(self.num_units, most, *tensor.shape[1:])
        grouped = tensor.new_zeros((self.num_units, most, *tensor.shape[1:]))
        if repeat and most > 0:
            first = torch.zeros(self.num_units, dtype=torch.int64, device=tensor.device)
            first[unit[slot == 0]] = torch.nonzero(slot == 0).flatten()
            grouped[:] = tensor[first].unsqueeze(1)
        grouped[unit, slot] = tensor
        return grouped

    def summed(self, tensor: Tensor, where: str = "a layer") -> Tensor:
        """The sum over each unit's rows: ``(R, ...)`` to ``(U, ...)``."""
        grouped = self.by_unit(tensor, where)
        return grouped.flatten(0, 1) if grouped.shape[1] == 1 else grouped.sum(1)

    def by_row(self, grouped: Tensor, num_rows: int, where: str = "a layer") -> Tensor:
        """What :meth:`by_unit` grouped, row by row again: ``(U, K, ...)`` to ``(num_rows, ...)``."""
        if self.rows is None:
            return grouped.flatten(0, 1)
        unit, slot, *_ = self._slots(self.fold(num_rows, where), grouped.device)
        return grouped[unit, slot]

    def per_row(self, values: Tensor, num_rows: int, where: str = "a layer") -> Tensor:
        """Spreads one value per unit ``(U,)`` over the rows it owns: ``(R,)``."""
        fold = self.fold(num_rows, where)
        if self.rows is None:
            return values if fold == 1 else values.repeat_interleave(fold)
        return values[self.rows.to(values.device).repeat_interleave(fold)]

    def _slots(self, fold: int, device: torch.device) -> _Slots:
        assert self.rows is not None
        if fold in self._slot_cache and self._slot_cache[fold][0].device == device:
            return self._slot_cache[fold]
        unit = self.rows.to(device).repeat_interleave(fold)
        order = torch.argsort(unit, stable=True)
        counts = torch.bincount(unit, minlength=self.num_units)
        starts = counts.cumsum(0) - counts
        slot = torch.empty_like(unit)
        slot[order] = torch.arange(unit.numel(), device=device) - starts[unit[order]]
        most = int(counts.max()) if unit.numel() else 0
        even = unit.numel() == most * self.num_units and bool((order[1:] > order[:-1]).all())
        self._slot_cache[fold] = _Slots(unit, slot, most, even)
        return self._slot_cache[fold]


class _Slots(NamedTuple):
    """Where the rows go.

    Attributes:
        unit: each row's unit.
        slot: its position within the unit.
        most: the most rows that any unit has.
        in_order: whether every unit has as many and they lie one unit after the other.
    """

    unit: Tensor
    slot: Tensor
    most: int
    in_order: bool


def check_weights(weights: Tensor | None, units: UnitMap) -> None:
    """Refuses weights that would carry a unit past its bound."""
    if weights is None:
        return
    if weights.shape != (units.num_units,) or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise PrivacyConfigError(
            f"weights must hold one number in [0, 1] for each of the {units.num_units} units: a larger weight would "
            "carry a unit past its bound"
        )


def check_expected(expected: UnitMap | None, units: UnitMap) -> None:
    """Refuses a backward pass on other units than the forward pass was announced for."""
    if expected is not None and expected.counts() != units.counts():
        raise PrivacyConfigError(
            f"the forward pass was announced for {expected.counts()}, but its backward pass is on {units.counts()}: which "
            "layers work on samples was decided by the former. Call expect() before each forward pass."
        )

"""Which samples belong to one privacy unit, and which of them take part in a step.

A unit is a sample by default. With ids it is whatever the ids name: a patient with many images, a user with many
messages. Sampling then draws units, and a drawn unit brings its rows (samples of the data set) along.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling.keys import stream

__all__ = ("PrivacyUnit", "UnitIds", "UnitRows", "number_units")

UnitIds: TypeAlias = str | Sequence[Any] | NDArray[Any] | torch.Tensor | Callable[[Any], Any]
"""Whose each sample is: the name of an attribute of the training data set, the ids themselves, or a function of it."""

_ROWS_DOMAIN = 3
#: What data frames write where an id is missing. Taken for ids, they would join strangers in one unit, or tear the
#: samples of one person apart.
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "nat"})


@dataclass(frozen=True)
class PrivacyUnit:
    """What is protected as a whole, and how much of it a step may use.

    Args:
        ids: whose each sample is; ``None`` means that every sample is a unit of its own.
        max_rows: the most samples of a unit in one step, m >= 1; ``None`` takes all of them.
        copies: how often each chosen sample is asked for, K >= 1 (augmentation multiplicity).

    Raises:
        PrivacyConfigError: for values out of range, or ``max_rows`` without ``ids``.
    """

    ids: UnitIds | None = field(default=None, repr=False)  # private: representations end up in logs
    max_rows: int | None = None
    copies: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.ids, str) and not self.ids:
            raise PrivacyConfigError(
                "unit='' names no attribute of the data set; leave it out where a sample is a unit."
            )
        if self.max_rows is not None and self.ids is None:
            raise PrivacyConfigError(
                "max_rows_per_unit bounds the samples of a patient or user in one step, but no unit is given, so every "
                "sample is a unit of its own. Give unit=... (the data set's attribute with an id for each sample), or "
                "drop it."
            )
        for name, value in (("max_rows_per_unit", self.max_rows), ("augmentation_multiplicity", self.copies)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise PrivacyConfigError(f"{name}={value!r} must be a whole number >= 1")

    @property
    def name(self) -> str:
        """How reports call the unit: ``"sample"``, the attribute's name, or ``"given id"``. Never an id."""
        if self.ids is None:
            return "sample"
        return self.ids if isinstance(self.ids, str) else "given id"

    def rows_of(self, dataset: Any, key: bytes) -> UnitRows | None:
        """Return the rows of each unit of ``dataset``; None where a unit is a sample, taken once.

        Raises:
            PrivacyConfigError: if the ids do not fit the data set, or some are missing.
        """
        n = len(dataset)
        if self.ids is not None:
            return UnitRows(number_units(_read(self.ids, dataset), n), key, max_rows=self.max_rows, copies=self.copies)
        return UnitRows(np.arange(n), key, copies=self.copies) if self.copies > 1 else None


class UnitRows:
    """The rows of every unit, and the choice of those that take part in a step.

    **Guarantee**: what a unit contributes to a step is a function of its own rows and of random numbers that are its
    own: :meth:`choose` never looks at another unit. Adding or removing a unit therefore changes nothing but that unit's
    contribution, which clipping bounds, and each unit's rows are chosen afresh, uniformly, at every step.

    Args:
        unit_of_row: shape (n,), the unit of each row of the data set, every number in [0, U) present.
        key: the samplers' secret.
        max_rows: m, the most rows of one unit in a step; ``None`` for all.
        copies: K, how often each chosen row is taken; copies stand next to each other.
    """

    def __init__(
        self, unit_of_row: NDArray[np.int64], key: bytes, *, max_rows: int | None = None, copies: int = 1
    ) -> None:
        self._key, self._copies, self._max_rows = key, copies, max_rows
        self._order = np.argsort(unit_of_row, kind="stable").astype(np.int64)
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(unit_of_row)))).astype(np.int64)
        owned = np.diff(self._starts)
        taken = owned if max_rows is None else np.minimum(owned, max_rows)
        self._capped = bool((taken < owned).any())
        self.rows_per_unit = int(taken[0]) * copies if bool((taken == taken[0]).all()) else None
        """How many rows every unit brings to a step, copies included; None where units differ."""

    def __repr__(self) -> str:
        return f"UnitRows(num_units={self.num_units}, dataset_size={self.dataset_size})"

    @property
    def num_units(self) -> int:
        """Number of units U."""
        return len(self._starts) - 1

    @property
    def dataset_size(self) -> int:
        """Number of rows n of the data set."""
        return len(self._order)

    def choose(self, units: NDArray[np.int64], step: int) -> list[tuple[int, ...]]:
        """Return, for each of ``units``, the indices of the rows that it brings to step ``step``, each K times over."""
        # A random number for every row of the data set, in the units' order and whoever is drawn: so a unit's choice
        # is a function of (key, step, own place) alone, and a unit added at the end moves nobody's.
        lots = (
            stream(self._key, _ROWS_DOMAIN, step).integers(0, 1 << 63, size=self.dataset_size) if self._capped else None
        )
        chosen = []
        for unit in units.tolist():
            start, stop = self._starts[unit], self._starts[unit + 1]
            rows = self._order[start:stop]
            if lots is not None and self._max_rows is not None and len(rows) > self._max_rows:
                rows = np.sort(rows[np.argsort(lots[start:stop], kind="stable")[: self._max_rows]])
            chosen.append(tuple(np.repeat(rows, self._copies).tolist()))
        return chosen

    def digest(self) -> str:
        """A fingerprint of who owns what, by which ranks find out that they disagree. Not to be published."""
        return hashlib.sha256(self._order.tobytes() + self._starts.tobytes()).hexdigest()


def number_units(ids: Any, n: int) -> NDArray[np.int64]:
    """Return the unit of each sample, numbered 0, 1, ... in order of first appearance.

    Args:
        ids: one whole number or one string for each sample: a sequence, a one-dimensional tensor or an array.
        n: the number of samples.

    Returns:
        Shape (n,).

    Raises:
        PrivacyConfigError: for another number of ids, or ids that are missing or no clean keys: two spellings of one
            person would be two units, each protected by itself only.
    """
    values = _as_array(ids)
    if values.ndim != 1 or len(values) != n:
        raise PrivacyConfigError(
            f"unit must give one id for each of the {n} training samples, got shape {values.shape}. The ids belong to the "
            "*training* data set as the DataLoader has it: of a Subset, take the ids of its indices, or give the name of "
            "the attribute that holds them (unit='patient_id'), which is looked up through Subset and ConcatDataset."
        )
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[inverse]


def _read(ids: UnitIds, dataset: Any) -> Any:
    if isinstance(ids, str):
        return _attribute(dataset, ids)
    if callable(ids) and not isinstance(ids, torch.Tensor):
        return ids(dataset)
    return ids


def _attribute(dataset: Any, name: str) -> Any:
    """The ids called ``name``, of a data set or of the one that a Subset or ConcatDataset is made from."""
    # `getattr` on a wrapper may answer for the whole data set behind it: torch's wrappers are read by their indices.
    own = not isinstance(dataset, (Subset, ConcatDataset)) or inspect.getattr_static(dataset, name, None) is not None
    if own and hasattr(dataset, name):
        return getattr(dataset, name)
    if isinstance(dataset, Subset):
        whole = _as_array(_attribute(dataset.dataset, name))
        _one_each(whole, dataset.dataset)
        return whole[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_as_array(_attribute(part, name)) for part in dataset.datasets]
        for part, data in zip(parts, dataset.datasets, strict=True):
            _one_each(part, data)
        if len({part.dtype.kind for part in parts}) > 1:
            raise PrivacyConfigError(_KEYS)
        return np.concatenate(parts)
    raise PrivacyConfigError(
        f"unit={name!r}, but {type(dataset).__name__} has no attribute {name!r}. Give the training data set such an "
        "attribute with one id for each sample, or pass unit=function that returns the ids of a data set."
    )


def _one_each(ids: NDArray[Any], dataset: Any) -> None:
    if ids.ndim != 1 or len(ids) != len(dataset):
        raise PrivacyConfigError(
            f"the unit ids of {type(dataset).__name__} have shape {ids.shape}, but it has {len(dataset)} samples: give one "
            "id for each sample, in the order of its indices."
        )


_KEYS = (
    "unit ids must all be whole numbers, or all be strings without surrounding blanks, and none may be missing: two "
    "spellings of one person (1 and '1', 'a' and 'a ') would be protected as two, and samples without an id belong to "
    "nobody. Clean the ids, and leave out samples whose owner is unknown."
)


def _as_array(ids: Any) -> NDArray[Any]:
    """Ids as an int64 or a string array. The message of a refusal never shows one."""
    values = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids
    if isinstance(values, (str, bytes, dict, set)) or not hasattr(values, "__len__"):
        raise PrivacyConfigError(
            f"unit ids must be a sequence, a tensor or an array with one id for each sample, got {type(ids).__name__}"
        )
    if hasattr(values, "dtype") and np.asarray(values).dtype.kind in "iu":
        return np.asarray(values)
    items = list(values)
    if items and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in items):
        return np.asarray([int(i) for i in items])
    if not all(isinstance(i, str) and i == i.strip() and i.lower() not in _MISSING for i in items):
        raise PrivacyConfigError(_KEYS)
    return np.asarray(items, dtype=np.str_)

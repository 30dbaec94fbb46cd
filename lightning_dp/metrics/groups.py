"""The groups a measure is broken down by: one or several attributes with all their levels, named beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ("Groups", "Values")

#: What an attribute of a batch may look like: level numbers, or level names.
Values = Tensor | Sequence[str] | Sequence[int]


@dataclass(frozen=True, init=False)
class Groups:
    """All combinations of the levels of one or several attributes.

    The levels are given beforehand and not read off the data, so that every rank and every run has the same groups in the
    same order, and a group without a single sample is still a row of the result (n = 0).

    Args:
        attributes: attribute -> its levels, ``{"sex": ["female", "male"], "age": ["<60", ">=60"]}``. Groups are numbered
            with the last attribute running fastest. In a configuration file as pairs: ``[[sex, [female, male]], ...]``.

    Raises:
        ValueError: no attribute, an attribute without levels, an attribute or a level named twice or called "all".
    """

    attributes: tuple[tuple[str, tuple[str, ...]], ...]

    def __init__(self, attributes: Mapping[str, Sequence[str]] | Sequence[tuple[str, Sequence[str]]]) -> None:
        given = attributes.items() if isinstance(attributes, Mapping) else attributes
        pairs = tuple((str(name), tuple(str(level) for level in levels)) for name, levels in given)
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError(f"an attribute is named twice: {[name for name, _ in pairs]}.")
        if not pairs or any(not levels for _, levels in pairs):
            raise ValueError('Groups needs at least one attribute with one level, as Groups({"sex": ["f", "m"]}).')
        for name, levels in pairs:
            if len(set(levels)) != len(levels):
                raise ValueError(
                    f"attribute {name!r} names a level twice: {list(levels)}. Give each level its own name."
                )
            if name and "all" in levels:
                raise ValueError(
                    f'attribute {name!r} has the level "all", which stands for all samples: call it otherwise.'
                )
        object.__setattr__(self, "attributes", pairs)
        if len(set(self.names)) != len(self):
            raise ValueError(f"two groups would have one name: avoid commas in the levels of {self.attribute_names}.")

    @classmethod
    def everybody(cls) -> Groups:
        """One group that holds every sample."""
        return cls({"": ["all"]})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all groups in order: the level, or the levels of several attributes joined by a comma."""
        return tuple(", ".join(cell) for cell in itertools.product(*(levels for _, levels in self.attributes)))

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the attributes in order."""
        return tuple(name for name, _ in self.attributes)

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, values: Values | Mapping[str, Values] | None, n: int) -> Tensor:
        """Numbers of the groups that ``n`` samples belong to.

        Args:
            values: the samples' levels. For one attribute: numbers (n,), a bool tensor (False is the first level) or names.
                For several: numbers (n, attributes), or a mapping attribute -> numbers or names. None for `everybody`.
            n: how many samples there are.

        Returns:
            (n,) int64.

        Raises:
            ValueError: a level that was not named beforehand, a missing value, or another number of samples.
        """
        if values is None:
            if len(self) > 1:
                raise ValueError(f"groups are missing: give each sample its {' and '.join(self.attribute_names)}.")
            return torch.zeros(n, dtype=torch.int64)
        columns = self._columns(values)
        ids = torch.zeros(n, dtype=torch.int64)
        for (name, levels), column in zip(self.attributes, columns, strict=True):
            numbers = _level_numbers(name, levels, column)
            if len(numbers) != n:
                raise ValueError(f"attribute {name!r} has {len(numbers)} values for {n} samples: give one for each.")
            ids = ids.to(numbers.device) * len(levels) + numbers
        return ids

    def collapse(self, keep: Sequence[str]) -> tuple[Groups, Tensor]:
        """The groups by the attributes ``keep`` alone, and where each of these groups goes: (groups,) int64."""
        unknown = [name for name in keep if name not in self.attribute_names]
        if unknown or not keep or len(set(keep)) != len(keep):
            raise ValueError(f"no groups by {list(keep)}: the attributes are {list(self.attribute_names)}.")
        sizes = dict(self.attributes)
        coarse = Groups({name: sizes[name] for name in keep})
        places = []
        for cell in itertools.product(*(range(len(levels)) for _, levels in self.attributes)):
            at = dict(zip(self.attribute_names, cell, strict=True))
            place = 0
            for name in keep:
                place = place * len(sizes[name]) + at[name]
            places.append(place)
        return coarse, torch.tensor(places)

    def _columns(self, values: Values | Mapping[str, Values]) -> list[Values]:
        if isinstance(values, Mapping):
            missing = [name for name in self.attribute_names if name not in values]
            if missing:
                raise ValueError(f"the samples' {missing} are missing: the groups are by {list(self.attribute_names)}.")
            return [values[name] for name in self.attribute_names]
        if len(self.attributes) == 1:
            return [values.reshape(-1) if isinstance(values, Tensor) and values.ndim == 2 else values]
        if isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] == len(self.attributes):
            return list(values.unbind(1))
        raise ValueError(
            f"groups by {list(self.attribute_names)} need a tensor (n, {len(self.attributes)}) of level numbers or a "
            "mapping from each attribute to its values."
        )


def sum_groups(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Sums rows (groups, ...) into (size, ...), row i into row ``places[i]``."""
    return torch.zeros((size, *values.shape[1:]), dtype=values.dtype, device=values.device).index_add_(
        0, places.to(values.device), values
    )


def _level_numbers(name: str, levels: tuple[str, ...], column: Values) -> Tensor:
    if not isinstance(column, Tensor):
        names = [str(value) for value in column]
        strange = sorted(set(names) - set(levels))
        if strange and all(isinstance(value, int) for value in column):
            return _level_numbers(name, levels, torch.tensor(column))
        if strange:
            raise ValueError(
                f"attribute {name!r} has values {strange[:5]} that are none of its levels {list(levels)}. Name every level in "
                'Groups, "unknown" among them if values are missing: no sample is left out silently.'
            )
        order = {level: number for number, level in enumerate(levels)}
        return torch.tensor([order[value] for value in names], dtype=torch.int64)
    if column.is_floating_point() and not bool((column == column.round()).all()):  # NaN is not equal to itself
        raise ValueError(f"attribute {name!r} has values that are no level numbers (fractions or NaN).")
    numbers = column.detach().to(torch.int64)
    if numbers.numel() and not bool(((numbers >= 0) & (numbers < len(levels))).all()):
        raise ValueError(
            f"attribute {name!r} has level numbers from {int(numbers.min())} to {int(numbers.max())}; its levels "
            f"{list(levels)} are numbered 0 to {len(levels) - 1}. Name every level in Groups: no sample is left out silently."
        )
    return numbers

"""Which kind of rows each layer sees: decided by the numbers of rows, over all batches together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.units import MAIN, UnitMap

__all__ = ("RowMemory",)

Call = tuple[str, int]
"""A layer's path and which of its calls in a forward pass it is."""

Reading = tuple[str, int]
"""A kind of rows, and how many rows stand for one row of that kind (an axis folded into axis 0)."""


class RowMemory:
    """Remembers, for each call of each layer, which readings of its rows every batch so far allows.

    The kind of rows that a call sees is a property of the network, not of the batch. A batch allows those readings whose
    number of rows divides the layer's; the memory keeps what *all* batches allow. Of these the one with the fewest rows
    per row is taken.

    **Rule**: if two readings remain and say the same of every row of this batch, either is right. If they differ, the rows
    cannot be assigned and nobody guesses: the layer is refused. A batch of one unit is right under any reading, and
    separates kinds that occur in different numbers in that unit. If no unit of a data set separates two kinds, their maps
    are equal in every batch of it. So a pass over single units (the strategy's self-check makes it) decides before the first
    step all that a training run can need, and no refusal during training hangs on who is in a batch.

    A layer whose readings run out, because the number of its rows per unit changes, does not have the batch on axis 0.
    """

    def __init__(self) -> None:
        self._readings: dict[Call, frozenset[Reading]] = {}
        self._shared: set[Call] = set()
        self._with_rows: dict[tuple[Call, int], frozenset[int]] = {}
        self.borrowed: dict[str, int] = {}
        """Parameters that leaked, and how many modules around their owner are followed for reading them themselves."""

    def resolve(self, name: str, call: int, num_rows: int, units: UnitMap) -> UnitMap:
        """The map of the ``num_rows`` rows that call number ``call`` of layer ``name`` sees.

        Raises:
            PrivacyError: if the rows fit no kind, not the kind of earlier batches, or several that disagree.
        """
        fitting = _readings(num_rows, units)
        if not fitting:
            if not units.kinds:
                units.fold(num_rows, name)  # refuses
            raise PrivacyError(
                f"{name} saw {num_rows} rows along axis 0, but the batch has {_listed(units)}, so a row cannot be assigned "
                "to its unit. Rows that the network makes itself (pooled or sampled nodes, dropped edges) need a map of "
                "their own: give DPStrategy(unit_map=...), or compute them before the batch is made."
            )
        before = self._readings.get((name, call))
        left = fitting if before is None else fitting & before
        if not left:
            assert before is not None
            raise PrivacyError(_changed(name, num_rows, fitting, before, units))
        self._readings[name, call] = left
        chosen, *others = _simplest(left)
        if others and not self._agree([kind for kind, _ in (chosen, *others)], num_rows, units, name):
            raise PrivacyError(
                f"{name} saw {num_rows} rows, which can be {' or '.join(kind for kind, _ in (chosen, *others))} of this "
                "batch, and nothing before it told which. Let the strategy's self-check run (it looks at single units), or "
                "in a loop of your own run one backward pass on a single unit first."
            )
        return units.of_kind(chosen[0])

    @staticmethod
    def _agree(kinds: list[str], num_rows: int, units: UnitMap, name: str) -> bool:
        """Whether these kinds of rows say the same of every row of this batch."""
        first, *others = (units.of_kind(kind).owners(num_rows, name) for kind in kinds)
        return all(torch.equal(first, other) for other in others)

    def is_shared(self, name: str, call: int, num_rows: int, units: UnitMap) -> bool:
        """Whether the ``num_rows`` rows of a call that no gradient comes back to are no rows of the batch.

        They are not if they fit no kind of rows, or fit none that they fitted before: positions counted once for the whole
        batch, while its size changed. What was shared once is shared always. Of a call seen for the first time, several rows
        for each unit are taken for shared ones: if they are not, the units cannot be told apart where the value meets the
        samples, and it is refused there.
        """
        if (name, call) not in self._shared:
            fitting, before = _readings(num_rows, units), self._readings.get((name, call))
            if before is None and _are_several(fitting, units):
                return True
            left = fitting if before is None else fitting & before
            if left:
                self._readings[name, call] = left
            elif num_rows:
                self._shared.add((name, call))
                self._readings.pop((name, call), None)
        return (name, call) in self._shared

    def with_rows(self, name: str, call: int, inputs: Iterable[Tensor], num_rows: int) -> list[Tensor]:
        """Those of a call's input tensors that hold its rows, so that each unit gets its own part: the others are shared.

        They have as many rows as the output, in this batch and in all before. A mask over positions or a matrix that the
        whole batch shares has as many in the batches alone that happen to be so large, and is not to stop these.
        """
        tensors = list(inputs)
        found = frozenset(i for i, t in enumerate(tensors) if t.dim() > 0 and t.shape[0] == num_rows)
        key = ((name, call), len(tensors))
        self._with_rows[key] = found & self._with_rows.get(key, found)
        return list({id(tensors[i]): tensors[i] for i in sorted(self._with_rows[key])}.values())

    def refuse_unknown(self, name: str, call: int, num_rows: int, units: UnitMap) -> None:
        """Refuses rows that may be several for each unit, or shared by all, while nothing before told which.

        Raises:
            PrivacyError: so it is for the call ``call`` of layer ``name``.
        """
        known = (name, call) in self._shared or (name, call) in self._readings
        if not known and _are_several(_readings(num_rows, units), units):
            raise PrivacyError(
                f"{name} saw {num_rows} rows for {units.num_units} units: several for each, or rows that the whole batch "
                "shares (an embedding of torch.arange), and nothing before it told which. Let the strategy's self-check "
                "run, or in a loop of your own run one backward pass on a single unit first."
            )

    def borrow(self, names: Iterable[str], most: Callable[[str], int]) -> bool:
        """Follows one more module around each parameter that leaked; whether there was one.

        Args:
            names: qualified parameter names.
            most: how many modules around a parameter there are.
        """
        more = {name: self.borrowed.get(name, 0) + 1 for name in names}
        more = {name: level for name, level in more.items() if level <= most(name)}
        self.borrowed.update(more)
        return bool(more)

    def undecided(self, units: UnitMap) -> list[frozenset[Reading]]:
        """Readings with different maps that no batch so far has told apart for some call; ``units`` is any batch's map."""
        ragged = {MAIN, *units.kinds} if units.rows is not None else {*units.kinds}
        return [
            left
            for left in set(self._readings.values())
            if len({kind if kind in ragged else "regular" for kind, _ in left}) > 1
        ]

    def would_help(self, units: UnitMap) -> bool:
        """Whether a batch with these rows tells apart what is still undecided."""
        counts = units.counts()
        return any(len({counts.get(kind, 0) * fold for kind, fold in left}) > 1 for left in self.undecided(units))


def _readings(num_rows: int, units: UnitMap) -> frozenset[Reading]:
    return frozenset(
        (kind, num_rows // count) for kind, count in units.counts().items() if count and num_rows % count == 0
    )


def _are_several(fitting: frozenset[Reading], units: UnitMap) -> bool:
    return bool(fitting) and units.num_units > 1 and _simplest(fitting)[0][1] > 1


def _simplest(readings: frozenset[Reading]) -> list[Reading]:
    fewest = min(fold for _, fold in readings)
    return sorted(reading for reading in readings if reading[1] == fewest)


def _changed(name: str, num_rows: int, now: frozenset[Reading], before: frozenset[Reading], units: UnitMap) -> str:
    if units.kinds:
        return (
            f"{name} saw {num_rows} rows, which are {_told(now)} of this batch, and {_told(before)} before: its axis 0 does "
            f"not hold one kind of rows of the batch ({_listed(units)}), so rows cannot be assigned to units. Give "
            "DPStrategy(unit_map=...) with a map for these rows, or compute them before the batch is made."
        )
    earlier = dict(before).get(MAIN, _told(before))
    return (
        f"{name} saw {dict(now)[MAIN]} rows for each privacy unit, and {earlier} before: its axis 0 is not the batch axis "
        "(an embedding of torch.arange, a sequence-first layout), so rows cannot be assigned to units. Use "
        "batch-first layouts and expand shared tensors to one row per sample."
    )


def _told(readings: frozenset[Reading]) -> str:
    return " or ".join(f"{kind} ({fold} rows each)" if fold > 1 else kind for kind, fold in sorted(readings))


def _listed(units: UnitMap) -> str:
    names = {MAIN: "units" if units.rows is None else "rows"}
    return ", ".join(f"{count} {names.get(kind, kind)}" for kind, count in units.counts().items())

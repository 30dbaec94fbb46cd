"""What a data worker does with one rank's draw: fetch each chunk's samples, collate each chunk by itself.

Splitting happens *before* collation, so any collate function works: nobody has to cut a collated batch (a
dict, a list of ragged tensors, a graph) in pieces again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from lightning_dp.sampling.batches import RankDraw

__all__ = ("FetchedDraw", "LogicalBatch", "LogicalCollate", "LogicalDataset")


class FetchedDraw(NamedTuple):
    """A draw and, for each of its chunks, the samples."""

    draw: RankDraw
    samples: list[Any]


class LogicalBatch(NamedTuple):
    """One rank's share of a logical step, collated.

    A named tuple on purpose: torch's ``pin_memory`` descends into named tuples and lists, and calls the
    ``pin_memory`` method of whatever the user's collate function returned, so pinning needs no code here.

    Attributes:
        step: the logical step.
        sizes: samples in each physical batch.
        real: whether each physical batch was drawn (False: a stand-in of weight 0).
        batches: what the user's collate function returned for each chunk, at least one.
        rows_per_unit: as in `RankDraw`.
        rows: as in `RankDraw`.
    """

    step: int
    sizes: tuple[int, ...]
    real: tuple[bool, ...]
    batches: list[Any]
    rows_per_unit: int = 1
    rows: tuple[tuple[int, ...], ...] | None = None


class LogicalDataset(Dataset[FetchedDraw]):
    """The user's map-style data set, indexed by `RankDraw`.

    A chunk is fetched through ``__getitems__`` where the data set has it, as torch does. Attributes are read
    from, and written to, the user's data set: a ``worker_init_fn`` that opens a file on
    ``get_worker_info().dataset`` works.

    Args:
        dataset: the user's data set.
    """

    _dataset: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_dataset", dataset)

    def __getitem__(self, draw: RankDraw) -> FetchedDraw:
        fetch_all = getattr(self._dataset, "__getitems__", None)
        if fetch_all:
            return FetchedDraw(draw, [fetch_all(list(chunk)) for chunk in draw.chunks])
        return FetchedDraw(draw, [[self._dataset[index] for index in chunk] for chunk in draw.chunks])

    def __getattr__(self, name: str) -> Any:
        # Dunder lookups are pickle's and copy's, about this object; and `_dataset` is absent while
        # unpickling.
        if name == "_dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)


class LogicalCollate:
    """Calls the user's collate function once per chunk, each time with at least one sample.

    Args:
        collate_fn: the user's collate function.
    """

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, fetched: Any) -> LogicalBatch:
        """Collates each chunk by itself; never an empty one."""
        draw: RankDraw = fetched.draw
        batches = [self.collate_fn(chunk) for chunk in fetched.samples]
        return LogicalBatch(draw.step, draw.sizes, draw.real, batches, draw.rows_per_unit, draw.rows)

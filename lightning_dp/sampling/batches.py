"""From a logical draw to each rank's physical chunks, in step on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling.samplers import LogicalSampler
from lightning_dp.sampling.units import UnitRows

__all__ = ("LogicalBatchSampler", "RankDraw", "split_draw", "split_units")


_AHEAD = 8  # draws at once


@dataclass(frozen=True)
class RankDraw:
    """One rank's share of one logical step.

    Attributes:
        chunks: physical batches, each a non-empty tuple of the data set's indices.
        real: for each chunk, whether its samples were drawn. A chunk that is not real is a *stand-in*: it
            runs through user code so that collectives and logs stay in step over ranks, and must have weight
            exactly 0 in the gradient.
        step: the logical step.
        rows_per_unit: how many of a chunk's samples, stored unit by unit, each privacy unit owns.
        rows: for each chunk, the number of samples that each of its units owns; None where all own
            ``rows_per_unit``.
    """

    chunks: tuple[tuple[int, ...], ...]
    real: tuple[bool, ...]
    step: int = 0
    rows_per_unit: int = 1
    rows: tuple[tuple[int, ...], ...] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of samples in each chunk, stand-ins included."""
        return tuple(len(chunk) for chunk in self.chunks)


def split_draw(
    indices: NDArray[np.int64],
    *,
    rank: int,
    world_size: int,
    physical_batch_size: int | None,
    stand_in: int = 0,
    step: int = 0,
) -> RankDraw:
    """Return rank ``rank``'s share of a draw: ``indices[rank::world_size]``, in chunks that fit in memory.

    Guarantees: the real chunks of all ranks partition the draw, so the sum over them is the sum over the
    logical batch. Every rank gets the same number of chunks, at least 1, computed from the size of the global
    draw without communicating: ranks that differ in their number of forward passes pair up unrelated
    collectives, or hang.

    A rank that lacks samples gets a stand-in, because an empty batch breaks collate functions and mean losses
    (zero over zero), and skipping the step instead would publish that the batch was empty. The stand-in must
    have weight zero: with any weight, the neighbouring data set in which the batch holds one sample would
    differ by that sample *and* by the stand-in it replaces, up to 2C, twice what the noise is calibrated to.

    Args:
        indices: the whole logical batch, shape (k,), k >= 0; the same on every rank.
        rank: 0 <= rank < world_size.
        world_size: number of ranks.
        physical_batch_size: the most samples in a chunk; None puts a rank's share into one chunk.
        stand_in: index that fills a missing chunk.
        step: carried along.

    Raises:
        PrivacyConfigError: for a rank outside the world, or a physical batch size below 1.
    """
    _check_place(rank, world_size, physical_batch_size)
    largest_share = -(-len(indices) // world_size)
    size = physical_batch_size or max(largest_share, 1)
    count = max(-(-largest_share // size), 1)
    mine = indices[rank::world_size].tolist()
    chunks = [tuple(mine[first : first + size]) for first in range(0, len(mine), size)]
    missing = count - len(chunks)
    return RankDraw(
        chunks=(*chunks, *[(stand_in,)] * missing),
        real=(True,) * len(chunks) + (False,) * missing,
        step=step,
    )


def split_units(
    units: Sequence[tuple[int, ...]],
    *,
    rank: int,
    world_size: int,
    physical_batch_size: int | None,
    stand_in: tuple[int, ...] = (0,),
    step: int = 0,
    rows_per_unit: int | None = None,
) -> RankDraw:
    """Return rank ``rank``'s share of a draw of units with several rows each, in chunks that fit in memory.

    As `split_draw`, and a unit is never split: its rows stand together in one chunk on one rank. Split over two
    chunks it would be clipped twice, and count up to 2C.

    Args:
        units: the rows of every drawn unit; the same on every rank.
        rank: 0 <= rank < world_size.
        world_size: number of ranks.
        physical_batch_size: the most rows in a chunk; a unit with more gets a chunk of its own.
        stand_in: rows of the unit that fills a missing chunk.
        step: carried along.
        rows_per_unit: how many rows every unit has, if all have the same number.

    Raises:
        PrivacyConfigError: for a rank outside the world, or a physical batch size below 1.
    """
    _check_place(rank, world_size, physical_batch_size)
    shares = [_pack(units[other::world_size], physical_batch_size) for other in range(world_size)]
    mine = shares[rank]
    absent = max(1, *(len(share) for share in shares)) - len(mine)
    filled = [*mine, *[[stand_in]] * absent]
    return RankDraw(
        chunks=tuple(tuple(row for unit in chunk for row in unit) for chunk in filled),
        real=(True,) * len(mine) + (False,) * absent,
        step=step,
        rows_per_unit=rows_per_unit or 1,
        rows=None if rows_per_unit else tuple(tuple(len(unit) for unit in chunk) for chunk in filled),
    )


def _check_place(rank: int, world_size: int, physical_batch_size: int | None) -> None:
    if not 0 <= rank < world_size:
        raise PrivacyConfigError(f"`rank` must lie in [0, {world_size}), got {rank}.")
    if physical_batch_size is not None and physical_batch_size < 1:
        raise PrivacyConfigError(
            f"`physical_batch_size` must be at least 1, or None for no splitting; got {physical_batch_size}."
        )


def _pack(units: Sequence[tuple[int, ...]], most: int | None) -> list[list[tuple[int, ...]]]:
    """Whole units, in order, into as few chunks of at most ``most`` rows as that allows."""
    if most is None:
        return [list(units)] if units else []
    chunks: list[list[tuple[int, ...]]] = []
    room = 0
    for unit in units:
        if not chunks or len(unit) > room:
            chunks.append([])
            room = most
        chunks[-1].append(unit)
        room -= len(unit)
    return chunks


class LogicalBatchSampler(Sampler[RankDraw]):
    """Yields this rank's `RankDraw` of an epoch's worth of steps: ``position(), position() + 1, ...``.

    The position is asked anew at each ``iter``, so the iteration that follows a resume, or an epoch cut
    short, goes on at the first step not yet taken. It must count the steps *taken*, and never go back under
    one key: a draw used for two gradients is not two independent draws, which is what composition assumes.

    Args:
        sampler: what to draw; the same key on every rank.
        rank: this process.
        world_size: number of processes.
        physical_batch_size: the most samples a rank holds at once; None for no splitting.
        position: returns the number of logical steps taken so far in the whole run.
        rows: which rows a drawn unit brings along; None where a unit is a sample.
    """

    def __init__(
        self,
        sampler: LogicalSampler,
        rank: int,
        world_size: int,
        physical_batch_size: int | None,
        position: Callable[[], int],
        rows: UnitRows | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.rank = rank
        self.world_size = world_size
        self.physical_batch_size = physical_batch_size
        self.position = position
        self.rows = rows

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[RankDraw]:
        first = self.position()  # now, not at the first `next`
        return self._from(first, first + len(self))

    def _from(self, first: int, stop: int) -> Iterator[RankDraw]:
        # Several draws in a row cost half as much each as one between two training steps, which find the caches cold. A
        # draw is a function of the step alone, so one that is not used in the end (a stop) has released nothing.
        for start in range(first, stop, _AHEAD):
            steps = range(start, min(start + _AHEAD, stop))
            yield from [self._share(step, self.sampler.draw(step)) for step in steps]

    def _share(self, step: int, drawn: NDArray[np.int64]) -> RankDraw:
        """This rank's share of logical step ``step``."""
        if self.rows is not None:
            return split_units(
                self.rows.choose(drawn, step),
                rank=self.rank,
                world_size=self.world_size,
                physical_batch_size=self.physical_batch_size,
                stand_in=(0,) * (self.rows.rows_per_unit or 1),
                step=step,
                rows_per_unit=self.rows.rows_per_unit,
            )
        return split_draw(
            drawn,
            rank=self.rank,
            world_size=self.world_size,
            physical_batch_size=self.physical_batch_size,
            step=step,
        )

"""From a logical draw to each rank's physical chunks, in step on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling.samplers import LogicalSampler

__all__ = ("LogicalBatchSampler", "RankDraw", "split_draw")


@dataclass(frozen=True)
class RankDraw:
    """One rank's share of one logical step.

    Attributes:
        chunks: physical batches, each a non-empty tuple of global indices.
        real: for each chunk, whether its samples were drawn. A chunk that is not real is a *stand-in*: it
            runs through user code so that collectives and logs stay in step over ranks, and must have weight
            exactly 0 in the gradient.
        step: the logical step.
    """

    chunks: tuple[tuple[int, ...], ...]
    real: tuple[bool, ...]
    step: int = 0

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
    if not 0 <= rank < world_size:
        raise PrivacyConfigError(f"`rank` must lie in [0, {world_size}), got {rank}.")
    if physical_batch_size is not None and physical_batch_size < 1:
        raise PrivacyConfigError(
            f"`physical_batch_size` must be at least 1, or None for no splitting; got {physical_batch_size}."
        )
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
    """

    def __init__(
        self,
        sampler: LogicalSampler,
        rank: int,
        world_size: int,
        physical_batch_size: int | None,
        position: Callable[[], int],
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.rank = rank
        self.world_size = world_size
        self.physical_batch_size = physical_batch_size
        self.position = position

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[RankDraw]:
        first = self.position()  # now, not at the first `next`
        return (self.rank_draw(step) for step in range(first, first + len(self)))

    def rank_draw(self, step: int) -> RankDraw:
        """Return this rank's share of logical step ``step``."""
        return split_draw(
            self.sampler.draw(step),
            rank=self.rank,
            world_size=self.world_size,
            physical_batch_size=self.physical_batch_size,
            step=step,
        )

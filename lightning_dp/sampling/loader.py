"""The loader that a private run iterates: one item per logical step, in the user's own batch type."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from lightning_dp.errors import PrivacyError
from lightning_dp.sampling.batches import LogicalBatchSampler
from lightning_dp.sampling.fetching import LogicalBatch, LogicalCollate, LogicalDataset

__all__ = ("LogicalStep", "PrivateDataLoader")


@dataclass
class LogicalStep:
    """What belongs to a batch that the loader yielded.

    Attributes:
        step: the logical step.
        sizes: samples in each physical batch, the yielded one first.
        real: whether each physical batch was drawn; a stand-in (False) must have weight 0 in the gradient.
        rest: the physical batches after the yielded one, as the user's collate function made them (on the
            CPU).
        rows_per_unit: how many samples of a physical batch, stored unit by unit, each privacy unit owns.
        rows: for each physical batch, the number of samples that each of its units owns; None where all own
            ``rows_per_unit``.
    """

    step: int
    sizes: tuple[int, ...]
    real: tuple[bool, ...]
    rest: list[Any]
    rows_per_unit: int = 1
    rows: tuple[tuple[int, ...], ...] | None = None


class _FirstBatches(Iterator[Any]):
    """Yields the first physical batch of each logical step, and queues the rest in its own queue."""

    def __init__(self, logical: Iterator[LogicalBatch]) -> None:
        self._logical = logical
        self.queue: deque[LogicalStep] = deque()

    def __next__(self) -> Any:
        batch = next(self._logical)
        first, *rest = batch.batches
        step = LogicalStep(batch.step, batch.sizes, batch.real, rest, batch.rows_per_unit, batch.rows)
        self.queue.append(step)
        return first


class PrivateDataLoader:
    """Iterates logical steps; each item is the *first* physical batch of the step, in the user's own type.

    So a trainer sees one batch per logical step, whatever was split to fit memory, and user hooks on batches
    work. The other physical batches wait in a queue, oldest first, until `take` is called: also for a
    consumer that fetches ahead.

    A plain class round a `DataLoader`, and not a subclass of it, because the two disagree on what the
    attributes mean: torch fetches from ``dataset`` by what ``sampler`` yields and forbids changing either,
    whereas here ``dataset``, ``batch_size`` and ``sampler`` tell callbacks and users the truth about the
    logical batch. Lightning, moreover, rebuilds `DataLoader` instances (with a distributed sampler) whenever
    it meets them, and must not rebuild this one. Of a loader that is no `DataLoader`, Lightning 2.6 asks for
    ``len``, ``iter``, a ``worker_init_fn`` it may set, ``_iterator`` (to shut down persistent workers), and
    ``state_dict`` / ``load_state_dict`` (else it warns, on a resume within an epoch, that batches will
    repeat).

    Args:
        user_loader: the loader this one replaces.
        batch_sampler: what to load.
    """

    drop_last = False  # every step of an epoch is taken; there is no short last batch to drop

    def __init__(self, user_loader: DataLoader[Any], batch_sampler: LogicalBatchSampler) -> None:
        self.user_loader = user_loader
        self.dataset: Any = user_loader.dataset
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.batch_size = batch_sampler.sampler.expected_batch_size
        self.num_workers = user_loader.num_workers
        self.collate_fn: Callable[[Any], Any] = user_loader.collate_fn
        self.pin_memory = user_loader.pin_memory
        self.timeout = user_loader.timeout
        self.multiprocessing_context: Any = user_loader.multiprocessing_context
        self.generator: Any = user_loader.generator
        self.prefetch_factor = user_loader.prefetch_factor
        self.persistent_workers: bool = user_loader.persistent_workers
        # `in_order` is left at True whatever the user asked for: steps that overtake each other leave gaps
        # behind the position, and an iteration that starts again at the position would then use a draw twice.
        self._loader: DataLoader[Any] = DataLoader(
            LogicalDataset(user_loader.dataset),
            batch_size=None,
            sampler=batch_sampler,
            num_workers=self.num_workers,
            collate_fn=LogicalCollate(self.collate_fn),
            pin_memory=self.pin_memory,
            timeout=self.timeout,
            worker_init_fn=user_loader.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            generator=self.generator,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.persistent_workers,
            pin_memory_device=user_loader.pin_memory_device,
        )
        self._queue: deque[LogicalStep] = deque()
        self._last_taken = -1

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Start at the first step not yet taken, and forget what was queued before."""
        batches = _FirstBatches(iter(self._loader))
        # Only the queue is kept: holding the iterator would hold its workers. And each iterator has its own,
        # so that an abandoned one cannot slip a batch in between those of its successor.
        self._queue = batches.queue
        return batches

    def take(self) -> LogicalStep:
        """Return, once, what belongs to the oldest yielded batch that was not asked for yet.

        Raises:
            PrivacyError: if there is none (the batch did not come from this loader, so nothing is known about
                how it was sampled), or if the step was taken before (its draw would feed two gradients, and
                eps would be too small).
        """
        if not self._queue:
            raise PrivacyError(
                "A training batch did not come from the private loader, or was used twice: how it was "
                "sampled is unknown, so it cannot be accounted. Pass batches on as the loader yields them, "
                "one to each step."
            )
        step = self._queue.popleft()
        if step.step <= self._last_taken:
            raise PrivacyError(
                f"The draw of step {step.step} was used before (the last step was {self._last_taken}). Two "
                "gradients from one draw are not two independent draws, so the accounting would not hold. "
                "Let `position` count the steps taken, and build a new sampler with `new_key()` to start "
                "over."
            )
        self._last_taken = step.step
        return step

    def state_dict(self) -> dict[str, int]:
        """Return the step position, and never the key."""
        return {"step": self.batch_sampler.position()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing: the position belongs to whoever counts the steps, and is asked for at each ``iter``."""

    @property
    def worker_init_fn(self) -> Callable[[int], None] | None:
        """Called in each worker as it starts; a trainer may set it, to seed user transforms."""
        return self._loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Callable[[int], None] | None) -> None:
        self._loader.worker_init_fn = function

    @property
    def _iterator(self) -> Any:
        """The iterator that holds persistent workers: a trainer shuts them down through it at the end."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator

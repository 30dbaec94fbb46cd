"""What was released, once; and the loader that trains on it and on nothing else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_dp.errors import PrivacyError
from lightning_dp.strategies.neural.batches import Key, Template

__all__ = ("ReleasedLoader", "Releases", "shuffles")


@dataclass(frozen=True)
class Releases:
    """The noisy vectors of all samples, their labels, and the form of the user's batches.

    Everything here has passed the mechanism, except labels that were not randomised.

    Attributes:
        vectors: ``(k, n, ...)``: k releases of each sample, float32 or float16.
        labels: by key, ``(n, ...)``.
        template: form of a batch.
        terms: what was released and how, to tell whether a checkpoint's releases are the ones asked for.
    """

    vectors: Tensor
    labels: dict[Key, Tensor]
    template: Template
    terms: dict[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """n."""
        return self.vectors.shape[1]

    def of(self, indices: Tensor, release: int) -> Tensor:
        """One release of some samples, ``(B, ...)``."""
        return self.vectors[release % len(self.vectors)][indices]


class ReleasedLoader:
    """Iterates batches in the user's own form with nothing of the raw inputs in them.

    Inputs are zeros, or the releases themselves where those take the inputs' place. The data set is not held: whoever
    asks this loader for ``dataset`` gets the numbers of the samples.

    Args:
        user_loader: whose batch size, order and ``drop_last`` are kept.
        releases: returns the cache, once it is filled.
        release: number of the release that is in use, an epoch's.
        inputs: whether the releases are the inputs.
        rank, world_size: this process, which gets its share of the batches as under Lightning's DDP.
    """

    num_workers = 0

    def __init__(
        self,
        user_loader: DataLoader[Any],
        releases: Callable[[], Releases],
        release: Callable[[], int],
        *,
        inputs: bool,
        rank: int,
        world_size: int,
    ) -> None:
        batches = user_loader.batch_sampler
        assert isinstance(batches, BatchSampler)
        self.dataset = range(len(user_loader.dataset))  # type: ignore[arg-type]
        self.batch_size, self.drop_last = int(batches.batch_size), bool(batches.drop_last)
        data: Any = self.dataset
        if world_size > 1:
            self.sampler: Any = DistributedSampler(data, world_size, rank, shuffle=shuffles(user_loader))
        else:
            self.sampler = RandomSampler(data) if shuffles(user_loader) else SequentialSampler(data)
        self.batch_sampler = BatchSampler(self.sampler, self.batch_size, self.drop_last)
        self.worker_init_fn: Callable[[int], None] | None = None  # Lightning may set it
        self._iterator: Any = None  # and asks for this, to shut down workers that there are none of
        self._releases, self._release, self._inputs = releases, release, inputs
        self._queue: deque[Tensor] = deque()

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        queue: deque[Tensor] = deque()
        self._queue = queue
        return self._batches(queue)

    def _batches(self, queue: deque[Tensor]) -> Iterator[Any]:
        for chosen in self.batch_sampler:
            cache, indices = self._releases(), torch.tensor(chosen)
            template = cache.template
            labels = {key: value[indices] for key, value in cache.labels.items()}
            inputs = {}
            if self._inputs:
                (key,) = template.layout.inputs
                inputs[key] = cache.of(indices, self._release()).to(template.dtypes[key])
            queue.append(indices)
            yield template.batch(len(indices), inputs, labels)

    def take(self) -> Tensor:
        """Numbers of the samples of the oldest batch not yet asked for."""
        if not self._queue:
            raise PrivacyError(
                "a training batch did not come from the released samples, so what is in it is unknown. Pass batches on as the "
                "loader yields them, one to each step."
            )
        return self._queue.popleft()

    def state_dict(self) -> dict[str, int]:
        """Nothing: a resumed epoch draws its order afresh."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Does nothing."""


def shuffles(loader: DataLoader[Any]) -> bool:
    """Whether the user's loader shuffles, also behind Lightning's distributed sampler."""
    batches: Any = loader.batch_sampler
    sampler = batches.sampler
    return bool(sampler.shuffle) if isinstance(sampler, DistributedSampler) else isinstance(sampler, RandomSampler)

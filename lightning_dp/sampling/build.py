"""Rebuild a user's training loader as a private one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling.batches import LogicalBatchSampler
from lightning_dp.sampling.checks import why_not_private
from lightning_dp.sampling.loader import PrivateDataLoader
from lightning_dp.sampling.samplers import LogicalSampler
from lightning_dp.sampling.units import UnitRows

__all__ = ("build_private_loader",)


def build_private_loader(
    loader: DataLoader[Any] | PrivateDataLoader,
    sampler: LogicalSampler,
    *,
    rank: int,
    world_size: int,
    physical_batch_size: int | None,
    position: Callable[[], int],
    rows: UnitRows | None = None,
) -> PrivateDataLoader:
    """Return a loader over the same data set that yields the logical batches of ``sampler``.

    Everything about *how* data are loaded is kept: workers, pinning, collate function, worker initialisation,
    start method, generator (of worker seeds; draws come from the sampler's key), timeout, prefetching,
    persistent workers. *What* is loaded, batch size and sampler, is replaced.

    Args:
        loader: the user's; its `drop_last` has no meaning here and is ignored. A private loader is rebuilt
            from the loader it came from.
        sampler: made for the units of this data set, with the same key on every rank.
        rank: this process.
        world_size: number of processes.
        physical_batch_size: the most samples a rank holds at once; None for no splitting.
        position: returns the number of logical steps taken so far; an iteration starts there.
        rows: which rows a drawn unit brings along; None where a unit is a sample.

    Raises:
        PrivacyConfigError: if the loader cannot be sampled privately, or the sampler was made for another
            size.
    """
    if isinstance(loader, PrivateDataLoader):
        loader = loader.user_loader
    if (reason := why_not_private(loader)) is not None:
        raise PrivacyConfigError(reason)
    dataset: Any = loader.dataset
    units = len(dataset) if rows is None else rows.num_units
    if units != sampler.dataset_size or (rows is not None and rows.dataset_size != len(dataset)):
        raise PrivacyConfigError(
            f"The data set has {len(dataset)} samples in {units} privacy units, but the sampler was made for "
            f"{sampler.dataset_size} units: the sampling rate in the accounting would not be the one in force. Make a "
            "sampler for this data set."
        )
    batches = LogicalBatchSampler(sampler, rank, world_size, physical_batch_size, position, rows)
    return PrivateDataLoader(loader, batches)

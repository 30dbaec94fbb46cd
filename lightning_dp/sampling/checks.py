"""Why a user's training loader cannot be sampled privately: one small function per reason."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling.loader import PrivateDataLoader

__all__ = ("loader_batch_size", "why_not_private")


def _name(thing: object) -> str:
    return type(thing).__name__


def _size(dataset: object) -> int | None:
    """Return ``len(dataset)``, or None if it has no length."""
    try:
        return len(dataset) if isinstance(dataset, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _not_a_loader(loader: Any) -> str | None:
    if isinstance(loader, DataLoader):
        return None
    return (
        f"The training loader is a {_name(loader)}, not a torch DataLoader: a private run draws its own "
        "samples, and needs the data set, not a stream of batches somebody else sampled. Give one "
        "`torch.utils.data.DataLoader` over a map-style data set (combine several data sets with "
        "`torch.utils.data.ConcatDataset`)."
    )


def _own_iteration(loader: DataLoader[Any]) -> str | None:
    kind = type(loader)
    if kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator:
        return None
    return (
        f"{_name(loader)} makes batches in an iterator of its own: it would be bypassed, or would sample in "
        "a way that the accounting does not know. Move what it does into the data set or into `collate_fn`, "
        "and use `torch.utils.data.DataLoader`."
    )


def _iterable(loader: DataLoader[Any]) -> str | None:
    if not isinstance(loader.dataset, IterableDataset):
        return None
    return (
        f"{_name(loader.dataset)} is an IterableDataset: a stream fixes which samples come together, so "
        "samples cannot be drawn independently and the sampling rate is unknown. Use a map-style data set "
        "(with `__getitem__` and `__len__`), for example by indexing the stream's files once."
    )


def _unsized(loader: DataLoader[Any]) -> str | None:
    if _size(loader.dataset) is not None:
        return None
    return (
        f"{_name(loader.dataset)} has no length: the sampling rate is batch size / length, and eps follows "
        "from it. Give the data set a `__len__` that returns the number of samples."
    )


def _empty(loader: DataLoader[Any]) -> str | None:
    if _size(loader.dataset):
        return None
    return (
        f"{_name(loader.dataset)} is empty: there is nothing to learn from, and no sampling rate. Check the "
        "path, the split, or the filter that made the data set."
    )


def _custom_batches(loader: DataLoader[Any]) -> str | None:
    if loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler:
        return None
    return (
        f"The training loader has a custom batch_sampler ({_name(loader.batch_sampler)}): the accounting "
        "would not hold for batches it composes, and it is replaced by private sampling. Remove "
        "`batch_sampler` and give `batch_size`, the expected batch size, instead."
    )


def _unbatched(loader: DataLoader[Any]) -> str | None:
    if loader.batch_sampler is not None:
        return None
    return (
        "The training loader has batch_size=None: the expected batch size sets the sampling rate and the "
        "scale of the update, and cannot be guessed. Give `batch_size`, and let the data set return single "
        "samples."
    )


def _sampler(loader: DataLoader[Any]) -> str | None:
    batches: Any = loader.batch_sampler
    return _why_not_sampler(batches.sampler, _size(loader.dataset))


def _why_not_sampler(sampler: Any, dataset_size: int | None) -> str | None:
    """Return why ``sampler`` does not mean "every sample alike", which is all that is safe to replace."""
    if isinstance(sampler, WeightedRandomSampler):
        return (
            "The training loader has a WeightedRandomSampler: it draws some samples more often than others, "
            "and so gives them less privacy than the one sampling rate that is accounted. Drop it, and "
            "weigh the classes in the loss instead (weights bound by clipping, and taken from public "
            "knowledge)."
        )
    if isinstance(sampler, SubsetRandomSampler):
        return (
            "The training loader has a SubsetRandomSampler: private sampling would replace it and use the "
            "whole data set. Wrap the data set, `torch.utils.data.Subset(dataset, indices)`, and drop the "
            "sampler."
        )
    if isinstance(sampler, RandomSampler) and sampler.replacement:
        return (
            "The training loader has a RandomSampler with replacement: a sample could come twice in one "
            "batch, so its influence is not bounded by one clipped gradient. Use `shuffle=True`; Poisson "
            "sampling replaces it."
        )
    if isinstance(sampler, DistributedSampler):
        # Lightning wraps a sampler that is not torch's own as `DistributedSamplerWrapper`, keeping it in
        # `.dataset._sampler`; known by name, so that this package needs no Lightning.
        if _name(sampler) == "DistributedSamplerWrapper" and hasattr(sampler.dataset, "_sampler"):
            return _why_not_sampler(sampler.dataset._sampler, dataset_size)
        known, covered = type(sampler) is DistributedSampler, _size(sampler.dataset)
    else:
        known, covered = type(sampler) in (SequentialSampler, RandomSampler), _size(sampler)
    if not known:
        return (
            f"The training loader has a custom sampler ({_name(sampler)}): which samples it draws, and how "
            "often, is not known to the accounting, so eps would not hold. Drop `sampler` (use "
            "`shuffle=True`); choose a part of the data with `torch.utils.data.Subset`, and weigh samples "
            "in the loss."
        )
    if covered != dataset_size:
        return (
            f"The training loader's {_name(sampler)} covers {covered} samples, but the data set has "
            f"{dataset_size}: private sampling draws from the whole data set, at batch size / data set size. "
            "Drop `sampler` and its `num_samples`; choose a part with `torch.utils.data.Subset`, and "
            "shorten an epoch in the trainer."
        )
    return None


_CHECKS = (_not_a_loader, _own_iteration, _iterable, _unsized, _empty, _custom_batches, _unbatched, _sampler)


def why_not_private(loader: object) -> str | None:
    """Return why ``loader`` cannot be sampled privately (what, why, what to do instead), or None if it can.

    Accepted: a torch `DataLoader`, or a subclass that leaves iteration alone, over a non-empty map-style data
        set with
    a length, with torch's own batching, in order or shuffled, also behind the distributed sampler that
    Lightning puts in. A `PrivateDataLoader` is judged by the loader it was built from.
    """
    if isinstance(loader, PrivateDataLoader):
        loader = loader.user_loader
    user_loader: Any = loader
    return next((reason for check in _CHECKS if (reason := check(user_loader)) is not None), None)


def loader_batch_size(loader: object) -> int:
    """Return the batch size the user asked for: the expected batch size B over all ranks together.

    Raises:
        PrivacyConfigError: if the loader cannot be sampled privately.
    """
    if isinstance(loader, PrivateDataLoader):
        loader = loader.user_loader
    if (reason := why_not_private(loader)) is not None:
        raise PrivacyConfigError(reason)
    assert isinstance(loader, DataLoader)
    # Not `loader.batch_size`: torch leaves that at None where a BatchSampler was passed in.
    batches = loader.batch_sampler
    assert isinstance(batches, BatchSampler)
    return int(batches.batch_size)

"""Every refusal of a training loader, with reason and remedy; and the loaders that must be accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling import (
    PoissonSampler,
    build_private_loader,
    checks,
    key_from_seed,
    loader_batch_size,
    why_not_private,
)

DATA = TensorDataset(torch.arange(12))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Endless(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class EveryOther(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(0, 12, 2))

    def __len__(self) -> int:
        return 12


class Hurried(RandomSampler):
    """A subclass of a known sampler may do anything."""


class Balanced(DistributedSampler[Any]):
    """A subclass of the known distributed sampler, likewise."""


class Pairs(BatchSampler):
    """A subclass of the known batch sampler, too."""


class Doubling(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([batch for batch in super().__iter__() for _ in range(2)])


def distributed(sampler: Sampler[int]) -> DataLoader[Any]:
    """As Lightning leaves a loader with a sampler of the user's own, under several processes."""
    return DataLoader(DATA, 4, sampler=DistributedSamplerWrapper(sampler, num_replicas=2, rank=0))


WEIGHTED = WeightedRandomSampler([1.0] * 12, 12)

REFUSED: dict[str, tuple[Any, str, str]] = {
    "not a loader": ([1, 2], "is a list", "torch.utils.data.DataLoader"),
    "several loaders": ({"a": DataLoader(DATA)}, "is a dict", "ConcatDataset"),
    "own iteration": (Doubling(DATA, 4), "Doubling", "collate_fn"),
    "iterable": (DataLoader(Stream(), 4), "Stream is an IterableDataset", "map-style"),
    "unsized": (DataLoader(Endless(), 4, sampler=EveryOther()), "Endless has no length", "__len__"),
    "empty": (DataLoader(TensorDataset(torch.empty(0, 3)), 4), "is empty", "split"),
    "batch_size None": (DataLoader(DATA, None), "batch_size=None", "Give `batch_size`"),
    "batch sampler": (
        DataLoader(DATA, batch_sampler=Pairs(EveryOther(), 2, False)),
        "Pairs",
        "Remove `batch_sampler`",
    ),
    "list of batches": (
        DataLoader(DATA, batch_sampler=[[0, 1], [2]]),
        "custom batch_sampler",
        "Remove `batch_sampler`",
    ),
    "weighted": (DataLoader(DATA, 4, sampler=WEIGHTED), "WeightedRandomSampler", "loss"),
    "weighted, distributed": (distributed(WEIGHTED), "WeightedRandomSampler", "loss"),
    "subset": (
        DataLoader(DATA, 4, sampler=SubsetRandomSampler([1, 2])),
        "SubsetRandomSampler",
        "Subset(dataset",
    ),
    "replacement": (
        DataLoader(DATA, 4, sampler=RandomSampler(DATA, replacement=True)),
        "replacement",
        "shuffle=True",
    ),
    "num_samples": (
        DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=6)),
        "covers 6",
        "num_samples",
    ),
    "other data": (DataLoader(DATA, 4, sampler=SequentialSampler(range(5))), "covers 5 samples", "Subset"),
    "custom": (DataLoader(DATA, 4, sampler=EveryOther()), "custom sampler (EveryOther)", "Subset"),
    "custom, distributed": (distributed(EveryOther()), "custom sampler (EveryOther)", "Subset"),
    "custom in a BatchSampler": (
        DataLoader(DATA, batch_sampler=BatchSampler(EveryOther(), 4, True)),
        "Every",
        "Drop",
    ),
    "subclass": (DataLoader(DATA, 4, sampler=Hurried(DATA)), "custom sampler (Hurried)", "shuffle=True"),
    "distributed subclass": (
        DataLoader(DATA, 4, sampler=Balanced(DATA, 2, 0)),
        "custom sampler (Balanced)",
        "shuffle=True",
    ),
    "other data, distributed": (
        DataLoader(DATA, 4, sampler=DistributedSampler(TensorDataset(torch.arange(9)), 2, 0)),
        "covers 9",
        "Subset",
    ),
}

ACCEPTED = {
    "in order": DataLoader(DATA, 4),
    "shuffled": DataLoader(DATA, 4, shuffle=True, drop_last=True),
    "distributed": DataLoader(DATA, 4, sampler=DistributedSampler(DATA, num_replicas=5, rank=1)),
    "wrapped in order": distributed(SequentialSampler(DATA)),
    "wrapped shuffled": distributed(RandomSampler(DATA)),
    "torch's batch sampler": DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
    "joined": DataLoader(ConcatDataset([DATA, DATA]), 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_and_what_to_do(name: str) -> None:
    loader, what, remedy = REFUSED[name]
    reason = why_not_private(loader)
    assert reason is not None
    assert what in reason
    assert remedy in reason
    with pytest.raises(PrivacyConfigError):
        loader_batch_size(loader)
    with pytest.raises(PrivacyConfigError):
        build_private_loader(
            loader,
            PoissonSampler(12, 4, key_from_seed(0)),
            rank=0,
            world_size=1,
            physical_batch_size=None,
            position=lambda: 0,
        )


def test_every_check_refuses_something() -> None:
    """No check is dead, or hides behind another."""
    first = {next(check for check in checks._CHECKS if check(loader)) for loader, _, _ in REFUSED.values()}
    assert first == set(checks._CHECKS)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    loader = ACCEPTED[name]
    assert why_not_private(loader) is None
    assert loader_batch_size(loader) == 4


def test_a_private_loader_is_judged_by_its_origin() -> None:
    private = build_private_loader(
        DataLoader(DATA, 4),
        PoissonSampler(12, 4, key_from_seed(0)),
        rank=0,
        world_size=1,
        physical_batch_size=None,
        position=lambda: 0,
    )
    assert why_not_private(private) is None
    assert loader_batch_size(private) == 4

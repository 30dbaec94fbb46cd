"""The private loader: what reaches user code, in which order; nothing is lost, doubled or made up."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory as torch_pin_memory

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.sampling import (
    LogicalSampler,
    LogicalStep,
    PoissonSampler,
    PrivateDataLoader,
    ShuffleSampler,
    build_private_loader,
    key_from_seed,
)
from lightning_dp.sampling.fetching import LogicalBatch, LogicalDataset

N, B = 20, 5
KEY = key_from_seed(7)


class Ragged(Dataset[dict[str, Any]]):
    """Sample i: its index, and i % 4 + 1 numbers."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "points": torch.full((index % 4 + 1,), float(index))}


@dataclass
class Graph:
    """A batch type torch knows nothing about."""

    index: Tensor
    points: Tensor
    pinned: bool = False

    def pin_memory(self) -> Graph:
        return Graph(self.index, self.points, pinned=True)


def as_dict(samples: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(samples) > 0
    return {"index": torch.tensor([s["index"] for s in samples]), "points": [s["points"] for s in samples]}


def as_ragged_list(samples: list[dict[str, Any]]) -> list[tuple[int, Tensor]]:
    assert len(samples) > 0
    return [(s["index"], s["points"]) for s in samples]


def as_graph(samples: list[dict[str, Any]]) -> Graph:
    batch = as_dict(samples)
    return Graph(batch["index"], torch.cat(batch["points"]))


def indices(batch: Any) -> list[int]:
    """The sample indices in a batch made by any of the above."""
    if isinstance(batch, list):
        return [index for index, _ in batch]
    found: Tensor = batch.index if isinstance(batch, Graph) else batch["index"]
    return found.tolist()


def build(
    loader: DataLoader[Any] | PrivateDataLoader,
    sampler: LogicalSampler | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    physical: int | None = None,
    position: Callable[[], int] = lambda: 0,
) -> PrivateDataLoader:
    sampler = sampler or PoissonSampler(N, B, KEY)
    return build_private_loader(
        loader, sampler, rank=rank, world_size=world_size, physical_batch_size=physical, position=position
    )


def run(loader: PrivateDataLoader) -> list[tuple[LogicalStep, list[Any]]]:
    """One iteration: for each step its description and all its physical batches."""
    steps = []
    for first in loader:
        step = loader.take()
        steps.append((step, [first, *step.rest]))
    return steps


@pytest.mark.parametrize("sampler", [PoissonSampler(N, B, KEY), ShuffleSampler(N, B, KEY)], ids=["poisson", "shuffle"])
@pytest.mark.parametrize("collate", [as_dict, as_ragged_list, as_graph])
@pytest.mark.parametrize("physical", [None, 1, 2])
def test_batches_hold_the_draw_whatever_the_collation(
    sampler: LogicalSampler, collate: Callable[[Any], Any], physical: int | None
) -> None:
    steps = run(build(DataLoader(Ragged(), B, collate_fn=collate), sampler, physical=physical))
    assert [step.step for step, _ in steps] == [0, 1, 2, 3]
    for step, batches in steps:
        drawn = sampler.draw(step.step).tolist()
        assert [len(indices(batch)) for batch in batches] == list(step.sizes)
        assert physical is None or max(step.sizes) <= physical
        assert sum((indices(b) for b, real in zip(batches, step.real, strict=True) if real), []) == drawn
        for batch in batches:
            if isinstance(batch, Graph):
                wanted = [float(i) for i in indices(batch) for _ in range(i % 4 + 1)]
                assert batch.points.tolist() == wanted


def test_physical_batches_concatenate_to_the_unsplit_batch() -> None:
    inputs, targets = torch.randn(N, 3), torch.arange(N)
    user = DataLoader(TensorDataset(inputs, targets), B)
    whole, split = run(build(user)), run(build(user, physical=2))
    for (step, (batch,)), (_, batches) in zip(whole, split, strict=True):
        if step.real == (True,):
            assert torch.equal(batch[0], torch.cat([x for x, _ in batches]))
            assert torch.equal(batch[1], torch.cat([y for _, y in batches]))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_load_the_same(persistent: bool) -> None:
    alone = run(build(DataLoader(Ragged(), B, collate_fn=as_dict), physical=2))
    workers = DataLoader(
        Ragged(),
        B,
        collate_fn=as_dict,
        num_workers=2,
        persistent_workers=persistent,
        prefetch_factor=1,
        timeout=60,
    )
    for_workers = build(workers, physical=2)
    for step, (expected, found) in enumerate(zip(alone, run(for_workers), strict=True)):
        assert found[0].step == step
        assert (found[0].sizes, found[0].real) == (expected[0].sizes, expected[0].real)
        for a, b in zip(expected[1], found[1], strict=True):
            assert torch.equal(a["index"], b["index"])
            assert all(map(torch.equal, a["points"], b["points"]))


def test_persistent_workers_follow_the_position_and_can_be_shut_down() -> None:
    taken = 0
    user = DataLoader(Ragged(), B, collate_fn=as_dict, num_workers=1, persistent_workers=True)
    loader, sampler = build(user, position=lambda: taken), PoissonSampler(N, B, KEY)
    for _ in range(3):
        for first in itertools.islice(loader, 2):  # an epoch cut short, with two steps fetched ahead and dropped
            step = loader.take()
            assert step.step == taken
            if step.real[0]:
                assert indices(first) == sampler.draw(taken).tolist()
            taken += 1
    assert taken == 6
    assert loader._iterator is not None
    loader._iterator._shutdown_workers()
    loader._iterator = None
    assert not multiprocessing.active_children()


def test_ranks_see_one_logical_batch() -> None:
    sampler = PoissonSampler(N, B, KEY)
    user = DataLoader(Ragged(), B, collate_fn=as_dict)
    ranks = [run(build(user, sampler, rank=rank, world_size=3, physical=1)) for rank in range(3)]
    for step, shares in enumerate(zip(*ranks, strict=True)):
        assert len({len(batches) for _, batches in shares}) == 1
        real = [indices(b) for s, batches in shares for b, r in zip(batches, s.real, strict=True) if r]
        assert sorted(sum(real, [])) == sampler.draw(step).tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_empty_draws_never_reach_user_code(workers: int) -> None:
    sampler = PoissonSampler(N, 1, KEY)
    user = DataLoader(Ragged(), 1, collate_fn=as_dict, num_workers=workers)
    steps = run(build(user, sampler))
    empty = [step for step, _ in steps if len(sampler.draw(step.step)) == 0]
    assert len(steps) == N  # none is skipped: that a batch was empty is private
    assert len(empty) > 3
    assert all(step.real == (False,) and step.sizes == (1,) for step in empty)
    assert all(all(step.real) for step, _ in steps if step not in empty)


def test_bulk_fetching_is_honoured() -> None:
    asked: list[list[int]] = []

    class Bulk(Dataset[int]):
        def __len__(self) -> int:
            return N

        def __getitems__(self, wanted: list[int]) -> list[int]:
            asked.append(wanted)
            return wanted

        def __getitem__(self, index: int) -> int:
            raise AssertionError("one by one")

    steps = run(build(DataLoader(Bulk(), B), physical=2))
    assert asked == [batch.tolist() for _, batches in steps for batch in batches]
    assert all(1 <= len(wanted) <= 2 for wanted in asked)


def test_a_subset_is_a_data_set_of_its_own() -> None:
    subset = Subset(Ragged(), list(range(10, 20)))
    sampler = ShuffleSampler(10, 5, KEY)
    steps = run(build(DataLoader(subset, 5, collate_fn=as_dict), sampler))
    assert sorted(sum((indices(b) for _, batches in steps for b in batches), [])) == list(range(10, 20))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_consumer_may_fetch_ahead(ahead: int) -> None:
    loader = build(DataLoader(Ragged(), B, collate_fn=as_dict), ShuffleSampler(N, B, KEY), physical=3)
    iterator, seen = iter(loader), []
    waiting: list[Any] = list(itertools.islice(iterator, ahead))
    while True:
        waiting += itertools.islice(iterator, 1)
        if not waiting:
            break
        first, step = waiting.pop(0), loader.take()
        assert indices(first) + sum(map(indices, step.rest), []) == loader.sampler.draw(step.step).tolist()
        seen.append(step.step)
    assert seen == [0, 1, 2, 3]


def test_a_new_iteration_forgets_what_was_queued() -> None:
    loader = build(DataLoader(Ragged(), B, collate_fn=as_dict))
    stale = iter(loader)
    next(stale), next(stale)
    fresh = iter(loader)
    with pytest.raises(PrivacyError, match="did not come from"):
        loader.take()
    next(stale)  # an abandoned iterator cannot slip in between
    with pytest.raises(PrivacyError, match="did not come from"):
        loader.take()
    next(fresh)
    assert loader.take().step == 0
    with pytest.raises(PrivacyError, match="did not come from"):
        loader.take()


def test_a_draw_is_not_used_for_two_gradients() -> None:
    loader = build(DataLoader(Ragged(), B, collate_fn=as_dict), position=lambda: 0)  # a counter that never counts
    run(loader)
    next(iter(loader))
    with pytest.raises(PrivacyError, match="used before"):
        loader.take()


def test_resuming_in_mid_epoch_goes_on_at_the_position() -> None:
    user = DataLoader(Ragged(), B, collate_fn=as_ragged_list)
    through = [batches for _, batches in run(build(user))] + [b for _, b in run(build(user, position=lambda: 4))]
    resumed = build(user, position=lambda: 2)
    steps = run(resumed)
    assert len(resumed) == len(steps) == 4
    assert [step.step for step, _ in steps] == [2, 3, 4, 5]
    assert [[indices(b) for b in batches] for _, batches in steps] == [[indices(b) for b in s] for s in through[2:6]]


def test_the_state_is_the_position_alone() -> None:
    loader = build(DataLoader(Ragged(), B), position=lambda: 3)
    assert loader.state_dict() == {"step": 3}
    loader.load_state_dict({"step": 1})
    assert loader.state_dict() == {"step": 3}
    with pytest.raises(PrivacyError, match="key would reach a file"):
        pickle.dumps(loader)


def _noop(worker: int) -> None:
    pass


def test_how_data_are_loaded_is_kept() -> None:
    generator = torch.Generator()
    user = DataLoader(
        Ragged(),
        B,
        shuffle=True,
        collate_fn=as_dict,
        drop_last=True,
        num_workers=1,
        worker_init_fn=_noop,
        multiprocessing_context="fork",
        generator=generator,
        timeout=7,
        prefetch_factor=3,
        persistent_workers=True,
        in_order=False,
    )
    loader = build(user)
    for thing in (loader, loader._loader):
        assert thing.num_workers == 1
        assert thing.worker_init_fn is _noop
        assert thing.multiprocessing_context is user.multiprocessing_context
        assert thing.generator is generator
        assert (thing.timeout, thing.prefetch_factor) == (7, 3)
        assert thing.persistent_workers is True
    assert loader._loader.in_order  # see the comment there
    assert loader.collate_fn is as_dict
    assert loader.dataset is user.dataset
    assert (loader.batch_size, len(loader), loader.drop_last) == (B, 4, False)
    loader.worker_init_fn = None
    assert loader._loader.worker_init_fn is None


def test_the_users_generator_does_not_steer_the_draws() -> None:
    def content(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        user = DataLoader(Ragged(), B, shuffle=True, generator=generator, collate_fn=as_dict)
        return [indices(first) for first in build(user)]

    assert content(0) == content(1)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_pin_memory_is_passed_on() -> None:
    loader = build(DataLoader(Ragged(), B, pin_memory=True))
    assert loader.pin_memory
    assert loader._loader.pin_memory


def test_torch_pins_every_physical_batch_and_keeps_the_rest() -> None:
    batch = LogicalBatch(
        4, (2, 1), (True, False), [as_graph([Ragged()[1], Ragged()[2]]), {"g": as_graph([Ragged()[0]])}]
    )
    pinned: Any = torch_pin_memory(batch)  # type: ignore[no-untyped-call]
    assert isinstance(pinned, LogicalBatch)
    assert pinned[:3] == (4, (2, 1), (True, False))
    assert pinned.batches[0].pinned
    assert pinned.batches[1]["g"].pinned
    assert pickle.loads(pickle.dumps(batch)).sizes == (2, 1)


class Opens(Dataset[int]):
    """A data set that a worker must open first, as files often are."""

    offset: int | None = None

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        assert self.offset is not None, "not opened"
        return index + self.offset


def open_in_worker(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    assert dataset.offset is None
    dataset.offset = 100


def test_worker_init_fn_reaches_the_users_data_set() -> None:
    user = DataLoader(Opens(), B, num_workers=1, worker_init_fn=open_in_worker)
    steps = run(build(user, ShuffleSampler(N, B, KEY)))
    assert sorted(sum((b.tolist() for _, bs in steps for b in bs), [])) == list(range(100, 100 + N))
    wrapped: Any = LogicalDataset(Ragged())
    assert isinstance(pickle.loads(pickle.dumps(wrapped))._dataset, Ragged)  # as the spawn start method does
    assert isinstance(copy.deepcopy(wrapped)._dataset, Ragged)
    with pytest.raises(AttributeError):
        _ = wrapped.nothing_of_the_kind


class Collating(DataLoader[Any]):
    """As torch_geometric.loader.DataLoader: a subclass that sets `collate_fn`, with arguments of its own."""

    def __init__(self, dataset: Dataset[Any], batch_size: int, follow: str) -> None:
        self.follow = follow
        super().__init__(dataset, batch_size, collate_fn=as_graph)


def test_a_subclass_that_sets_collate_fn_works() -> None:
    for first in build(Collating(Ragged(), B, follow="x")):
        assert isinstance(first, Graph)


def test_a_private_loader_is_rebuilt_from_the_users() -> None:
    user = DataLoader(Ragged(), B, collate_fn=as_dict)
    again = build(build(user), physical=2)
    assert again.user_loader is user
    assert max(max(step.sizes) for step, _ in run(again)) == 2


def test_a_sampler_for_another_data_set_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="made for 21"):
        build(DataLoader(Ragged(), B), PoissonSampler(21, B, KEY))
    with pytest.raises(PrivacyConfigError, match="batch_size=None"):
        build(DataLoader(Ragged(), None))

"""The split of a draw over ranks and chunks: a partition, in step everywhere, stand-ins marked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling import (
    LogicalBatchSampler,
    PoissonSampler,
    RankDraw,
    ShuffleSampler,
    key_from_seed,
    split_draw,
)

KEY = key_from_seed(7)
PHYSICAL = st.none() | st.just(1) | st.integers(1, 40)


def shares(size: int, world_size: int, physical: int | None) -> list[RankDraw]:
    drawn = np.sort(np.random.default_rng(size).choice(1000, size, replace=False)).astype(np.int64)
    return [
        split_draw(drawn, rank=rank, world_size=world_size, physical_batch_size=physical, stand_in=1001)
        for rank in range(world_size)
    ]


@given(size=st.integers(0, 120), world_size=st.integers(1, 4), physical=PHYSICAL)
def test_real_chunks_partition_the_draw(size: int, world_size: int, physical: int | None) -> None:
    drawn = np.sort(np.random.default_rng(size).choice(1000, size, replace=False))
    found = [
        index
        for share in shares(size, world_size, physical)
        for chunk, real in zip(share.chunks, share.real, strict=True)
        if real
        for index in chunk
    ]
    assert sorted(found) == drawn.tolist()


@given(size=st.integers(0, 120), world_size=st.integers(1, 4), physical=PHYSICAL)
def test_ranks_stay_in_step(size: int, world_size: int, physical: int | None) -> None:
    split = shares(size, world_size, physical)
    lone_rank_chunks = [
        1 if physical is None else -(-len(range(rank, size, world_size)) // physical) for rank in range(world_size)
    ]
    assert {len(share.chunks) for share in split} == {max(1, *lone_rank_chunks)}
    for share in split:
        assert share.sizes == tuple(map(len, share.chunks))
        assert min(share.sizes) >= 1  # nothing empty ever reaches user code
        assert physical is None or max(share.sizes) <= physical
        assert all((chunk == (1001,)) != real for chunk, real in zip(share.chunks, share.real, strict=True))


@given(size=st.integers(1, 120), physical=st.integers(1, 40))
def test_chunks_joined_are_the_unsplit_batch(size: int, physical: int) -> None:
    (split,), (whole,) = shares(size, 1, physical), shares(size, 1, None)
    assert whole.real == (True,)
    assert sum(split.chunks, ()) == whole.chunks[0]
    assert all(split.real)


@pytest.mark.parametrize("physical", [None, 1, 8])
def test_an_empty_draw_is_one_stand_in(physical: int | None) -> None:
    empty = np.empty(0, dtype=np.int64)
    for rank in range(3):
        share = split_draw(empty, rank=rank, world_size=3, physical_batch_size=physical, step=5)
        assert share == RankDraw(chunks=((0,),), real=(False,), step=5)


def test_indices_are_plain_integers() -> None:
    (share,) = shares(5, 1, 2)
    assert {type(index) for chunk in share.chunks for index in chunk} == {int}


@pytest.mark.parametrize(
    ("rank", "world_size", "physical", "words"),
    [
        (2, 2, None, "rank"),
        (-1, 2, None, "rank"),
        (0, 1, 0, "physical_batch_size"),
        (0, 1, -3, "physical_batch_size"),
    ],
)
def test_impossible_splits_are_refused(rank: int, world_size: int, physical: int | None, words: str) -> None:
    with pytest.raises(PrivacyConfigError, match=words):
        split_draw(np.arange(4), rank=rank, world_size=world_size, physical_batch_size=physical)


@pytest.mark.parametrize("sampler", [PoissonSampler(50, 8, KEY), ShuffleSampler(50, 8, KEY)], ids=lambda s: s.sampling)
def test_iteration_goes_on_where_the_position_is(sampler: PoissonSampler | ShuffleSampler) -> None:
    taken = 0
    batches = LogicalBatchSampler(sampler, 1, 2, 3, lambda: taken)
    assert len(batches) == sampler.steps_per_epoch == 7
    through = [
        split_draw(sampler.draw(step), rank=1, world_size=2, physical_batch_size=3, step=step) for step in range(20)
    ]
    assert list(batches) == through[:7]
    taken = 4  # a resume in mid-epoch, or an epoch cut short: an epoch's worth of steps from there
    assert list(batches) == through[4:11]
    taken = 11
    assert [draw.step for draw in batches] == list(range(11, 18))


def test_the_position_is_read_when_iteration_starts() -> None:
    taken = 3
    iterator = iter(LogicalBatchSampler(PoissonSampler(50, 8, KEY), 0, 1, None, lambda: taken))
    taken = 5
    assert next(iterator).step == 3

"""Units of several samples: whose a sample is, which samples a step uses, and chunks that keep a unit whole.

Statistical tests have a fixed seed; their false-alarm rate is 1e-4 each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.sampling import (
    PoissonSampler,
    PrivacyUnit,
    RankDraw,
    UnitRows,
    build_private_loader,
    key_from_seed,
    number_units,
    split_units,
)

FALSE_ALARM = 1e-4
KEY = key_from_seed(7)
OWNERS = [0, 1, 0, 2, 2, 2, 2, 1, 0, 2, 3]  # 3, 2, 5 and 1 rows


class Images(Dataset[int]):
    """Sample i is i; its owner has an id."""

    def __init__(self, ids: Any) -> None:
        self.patient = ids

    def __len__(self) -> int:
        return len(self.patient)

    def __getitem__(self, index: int) -> int:
        return index


def units_of(ids: Any, dataset: Any) -> list[int]:
    """The unit of each sample, as the rows see it."""
    rows = PrivacyUnit(ids).rows_of(dataset, KEY)
    assert rows is not None
    owner = {row: u for u in range(rows.num_units) for row in rows.choose(np.array([u]), 0)[0]}
    return [owner[row] for row in range(rows.dataset_size)]


# --- ids --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "ids",
    [
        [7, 3, 7, 9],
        ["p7", "p3", "p7", "a"],
        np.array([7, 3, 7, 9], dtype=np.int16),
        np.array(["b", "a", "b", "c"]),
        np.array(["b", "a", "b", "c"], dtype=object),
        torch.tensor([7, 3, 7, -1]),
        ("7", "3", "7", "9"),
        [np.int64(7), 3, 7, 2**40],
    ],
    ids=repr,
)
def test_units_are_numbered_as_they_appear(ids: Any) -> None:
    numbers = number_units(ids, 4)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [0, 1, 0, 2]


@given(ids=st.lists(st.integers(-5, 5), min_size=1, max_size=30), more=st.lists(st.integers(-9, 9), max_size=10))
def test_samples_added_at_the_end_renumber_nobody(ids: list[int], more: list[int]) -> None:
    longer = number_units([*ids, *more], len(ids) + len(more))
    assert longer[: len(ids)].tolist() == number_units(ids, len(ids)).tolist()
    same = np.equal.outer(ids, ids)
    assert np.array_equal(np.equal.outer(longer[: len(ids)], longer[: len(ids)]), same)


@pytest.mark.parametrize(
    "ids",
    [
        [1.0, 2.0, 3.0],
        np.array([1.0, np.nan, 2.0]),
        torch.tensor([0.5, 1.0, 2.0]),
        [1, None, 2],
        ["secret", None, "b"],
        ["secret", "", "b"],
        ["secret", "NaN", "b"],
        ["secret", "nan", "b"],
        ["secret", "None", "b"],
        ["secret", " b", "b"],
        ["secret", "b\n", "b"],
        [1, "1", 2],
        [True, False, True],
        np.array([True, False, True]),
        [(1, 2), (1, 3), (1, 2)],
        [b"a", b"b", b"c"],
    ],
    ids=repr,
)
def test_ids_that_are_no_clean_keys_are_refused(ids: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="whole numbers, or all be strings") as caught:
        number_units(ids, 3)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("ids", [[4711], [4711] * 5, np.zeros((3, 1), dtype=int), np.zeros((), dtype=int)], ids=repr)
def test_another_number_of_ids_is_refused(ids: Any) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        number_units(ids, 3)
    assert "one id for each" in str(caught.value)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("ids", ["abc", {1, 2, 3}, {1: 2, 3: 4, 5: 6}, 3, None, lambda: None], ids=str)
def test_what_is_no_sequence_is_refused(ids: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="sequence"):
        number_units(ids, 3)


def test_ids_by_name_by_function_and_as_they_are() -> None:
    images = Images(["b", "a", "b", "c"])
    for ids in ("patient", images.patient, lambda data: data.patient):
        assert units_of(ids, images) == [0, 1, 0, 2]


def test_a_name_is_looked_up_through_subsets_and_concatenations() -> None:
    images = Images(["b", "a", "b", "c", "a"])
    assert units_of("patient", Subset(images, [4, 3, 1])) == [0, 1, 0]
    assert units_of("patient", Subset(Subset(images, [4, 3, 1]), [2, 0])) == [0, 0]
    # One person in two files is one unit.
    assert units_of("patient", ConcatDataset([images, Images(["c", "d"])])) == [0, 1, 0, 2, 1, 2, 3]
    assert units_of("patient", ConcatDataset([Subset(images, [3]), images])) == [0, 1, 2, 1, 0, 2]


def test_a_wrapper_that_answers_for_the_whole_data_set_is_not_believed() -> None:
    class Delegating(Subset[int]):
        def __getattr__(self, name: str) -> Any:
            return getattr(self.dataset, name)

    images = Images(["b", "a", "c", "a"])
    assert units_of("patient", Delegating(images, [3, 2, 1, 0])) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "dataset",
    [
        Images([1]),
        Subset(Images([1, 2]), [0]),
        ConcatDataset([Images([1]), Images([2])]),
    ],
    ids=["plain", "subset", "concatenation"],
)
def test_a_name_that_nobody_has_is_refused_with_the_fix(dataset: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="no attribute 'person'.*one id for each sample"):
        PrivacyUnit("person").rows_of(dataset, KEY)


def test_ids_that_do_not_fit_the_wrapped_data_set_are_refused() -> None:
    wrong = Images([1, 2, 3, 4])
    wrong.patient = [1, 2]
    wrong.__class__ = type("Longer", (Images,), {"__len__": lambda self: 4})
    for dataset in (Subset(wrong, [0, 1]), ConcatDataset([wrong, Images([1])])):
        with pytest.raises(PrivacyConfigError, match="has 4 samples"):
            PrivacyUnit("patient").rows_of(dataset, KEY)
    with pytest.raises(PrivacyConfigError):
        PrivacyUnit("patient").rows_of(ConcatDataset([Images([1, 2]), Images(["1"])]), KEY)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ids": ""},
        {"max_rows": 2},
        {"ids": "patient", "max_rows": 0},
        {"ids": "patient", "max_rows": 1.5},
        {"copies": 0},
        {"copies": True},
        {"copies": 2.0},
    ],
    ids=repr,
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrivacyConfigError):
        PrivacyUnit(**arguments)


def test_names_of_units_never_hold_an_id() -> None:
    assert PrivacyUnit().name == PrivacyUnit(copies=4).name == "sample"
    assert PrivacyUnit("patient").name == "patient"
    given_ids = PrivacyUnit(["secret", "other"])
    assert given_ids.name == "given id"
    rows = given_ids.rows_of([0, 1], KEY)
    assert "secret" not in repr(given_ids) + repr(rows)


# --- rows -------------------------------------------------------------------------------------------------------------
def rows_like(owners: list[int], **arguments: Any) -> UnitRows:
    return UnitRows(np.array(owners), KEY, **arguments)


@given(
    owners=st.lists(st.integers(0, 5), min_size=1, max_size=40).map(
        lambda found: number_units(found, len(found)).tolist()
    ),
    m=st.none() | st.integers(1, 6),
    copies=st.integers(1, 3),
    step=st.integers(0, 10**9),
)
def test_a_unit_brings_its_own_rows_and_at_most_m(owners: list[int], m: int | None, copies: int, step: int) -> None:
    rows = rows_like(owners, max_rows=m, copies=copies)
    drawn = np.arange(rows.num_units)
    chosen = rows.choose(drawn, step)
    assert chosen == rows.choose(drawn, step)  # a pure function of the step
    for unit, mine in enumerate(chosen):
        assert {owners[row] for row in mine} == {unit}
        distinct = sorted(set(mine))
        assert len(distinct) == min(owners.count(unit), m or len(owners))
        assert list(mine) == [row for row in distinct for _ in range(copies)]
    numbers = {len(mine) for mine in chosen}
    assert rows.rows_per_unit == (numbers.pop() if len(numbers) == 1 else None)


def test_what_a_unit_brings_does_not_depend_on_who_else_is_drawn() -> None:
    rows = rows_like(OWNERS, max_rows=2)
    for step in range(200):
        together = rows.choose(np.arange(4), step)
        for unit in range(4):
            assert rows.choose(np.array([unit]), step) == [together[unit]]


@pytest.mark.parametrize("place", [0, 3, len(OWNERS)])
def test_what_a_unit_brings_does_not_depend_on_an_added_unit(place: int) -> None:
    """Neighbours: the data set with a patient's images among the others', and without."""
    with_it = [*OWNERS[:place], 4, 4, 4, *OWNERS[place:]]
    kept = [row for row, owner in enumerate(with_it) if owner != 4]
    one, other = rows_like(OWNERS, max_rows=2), rows_like(with_it, max_rows=2)
    for step in range(200):
        moved = other.choose(np.arange(4), step)
        assert [tuple(kept[row] for row in mine) for mine in one.choose(np.arange(4), step)] == moved


def test_rows_are_chosen_uniformly_and_afresh() -> None:
    """Chi-square over the 10 pairs out of 5 rows, and over what follows what, in 6000 steps."""
    rows, steps = rows_like(OWNERS, max_rows=2), 6000
    pairs = [rows.choose(np.array([2]), step)[0] for step in range(steps)]
    kinds = sorted(set(pairs))
    assert len(kinds) == 10
    assert stats.chisquare([pairs.count(kind) for kind in kinds]).pvalue > FALSE_ALARM
    table = np.zeros((10, 10))
    for one, next_one in zip(pairs, pairs[1:], strict=False):
        table[kinds.index(one), kinds.index(next_one)] += 1
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


def test_units_choose_independently_of_each_other_and_of_the_draw() -> None:
    rows, steps = rows_like(OWNERS, max_rows=1), 6000
    sampler = PoissonSampler(4, 2, KEY)
    choices = [tuple(mine[0] for mine in rows.choose(np.arange(4), step)) for step in range(steps)]
    table = np.zeros((3, 5))
    owned = [[row for row, owner in enumerate(OWNERS) if owner == unit] for unit in range(3)]
    for choice in choices:
        table[owned[0].index(choice[0]), owned[2].index(choice[2])] += 1
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM
    with_draw = np.zeros((5, 2))
    for step, choice in enumerate(choices):
        with_draw[owned[2].index(choice[2]), int(0 in sampler.draw(step))] += 1
    assert stats.chi2_contingency(with_draw).pvalue > FALSE_ALARM


# --- chunks -----------------------------------------------------------------------------------------------------------
SIZES = st.lists(st.integers(1, 7), max_size=25)


def groups_of(sizes: list[int]) -> list[tuple[int, ...]]:
    ends = np.cumsum(sizes).tolist()
    return [tuple(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def split(sizes: list[int], world_size: int, physical: int | None, same: int | None = None) -> list[RankDraw]:
    return [
        split_units(
            groups_of(sizes),
            rank=rank,
            world_size=world_size,
            physical_batch_size=physical,
            stand_in=(999,) * (same or 1),
            rows_per_unit=same,
        )
        for rank in range(world_size)
    ]


@given(sizes=SIZES, world_size=st.integers(1, 4), physical=st.none() | st.integers(1, 12))
def test_no_unit_is_split_and_none_is_lost(sizes: list[int], world_size: int, physical: int | None) -> None:
    shares = split(sizes, world_size, physical)
    assert len({len(share.chunks) for share in shares}) == 1  # ranks stay in step
    found = []
    for share in shares:
        assert share.rows is not None
        for chunk, rows, real in zip(share.chunks, share.rows, share.real, strict=True):
            assert len(chunk) == sum(rows) >= 1
            assert physical is None or len(chunk) <= physical or len(rows) == 1  # too large a unit is alone
            assert (chunk == (999,)) != real
            start = 0
            for size in rows if real else ():
                found.append(chunk[start : start + size])
                start += size
    assert sorted(found) == groups_of(sizes)


@given(units=st.integers(0, 30), k=st.integers(1, 5), physical=st.none() | st.integers(1, 12))
def test_equal_units_need_no_map(units: int, k: int, physical: int | None) -> None:
    (share,) = split([k] * units, 1, physical, same=k)
    assert (share.rows_per_unit, share.rows) == (k, None)
    assert all(size % k == 0 and (physical is None or size <= max(k, physical)) for size in share.sizes)


def test_chunks_are_few() -> None:
    (share,) = split([3, 3, 2, 4, 9, 1, 1], 1, 6)
    assert share.rows == ((3, 3), (2, 4), (9,), (1, 1))


@pytest.mark.parametrize(("rank", "physical"), [(-1, None), (2, None), (0, 0)])
def test_impossible_places_are_refused(rank: int, physical: int | None) -> None:
    with pytest.raises(PrivacyConfigError):
        split_units([(0,)], rank=rank, world_size=2, physical_batch_size=physical)


# --- the loader -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_brings_whole_units(workers: int) -> None:
    images = Images(OWNERS)
    rows = PrivacyUnit("patient", max_rows=2).rows_of(images, KEY)
    assert rows is not None
    sampler = PoissonSampler(4, 2, KEY)
    loader = DataLoader(images, 2, num_workers=workers, **({"multiprocessing_context": "fork"} if workers else {}))
    private = build_private_loader(
        loader, sampler, rank=0, world_size=1, physical_batch_size=3, position=lambda: 0, rows=rows
    )
    assert len(private) == 2
    for step, first in enumerate(private):
        taken = private.take()
        units = rows.choose(sampler.draw(step), step)
        batches = [batch.tolist() for batch in (first, *taken.rest)]
        assert taken.rows is not None
        assert [len(batch) for batch in batches] == [sum(counts) for counts in taken.rows]
        assert sum(batches, []) == ([row for unit in units for row in unit] or [0])


@pytest.mark.parametrize(("units", "owners"), [(5, OWNERS), (4, OWNERS[:-2])])
def test_a_sampler_for_other_units_is_refused(units: int, owners: list[int]) -> None:
    rows = UnitRows(np.array(owners), KEY)
    with pytest.raises(PrivacyConfigError, match="privacy units"):
        build_private_loader(
            DataLoader(Images(OWNERS), 2),
            PoissonSampler(units, 2, KEY),
            rank=0,
            world_size=1,
            physical_batch_size=None,
            position=lambda: 0,
            rows=rows,
        )

"""Properties of the stratified split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dp.data.splits import stratified_split
from lightning_dp.errors import PrivacyConfigError


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 199), st.integers(0, 5))
def test_is_a_partition_with_the_class_proportions(labels: list[int], held_out: int, seed: int) -> None:
    array = np.array(labels)
    held_out = held_out % len(array)
    kept, held = stratified_split(array, held_out, seed)
    assert len(held) == held_out
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(array)))
    for label in range(5):
        exact = held_out * np.mean(array == label)
        assert abs(np.sum(array[held] == label) - exact) <= 1.0 + 1e-9


def test_is_a_function_of_the_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 500)
    first, again, other = (stratified_split(labels, 100, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("held_out", [-1, 3])
def test_refuses_to_leave_nothing(held_out: int) -> None:
    with pytest.raises(PrivacyConfigError, match="choose a number from 0 to 2"):
        stratified_split(np.zeros(3, dtype=np.int64), held_out, 0)


def test_the_message_has_the_users_name_for_the_number() -> None:
    with pytest.raises(PrivacyConfigError, match="Cannot hold out 7 of 3 samples.*choose val_size= from 0 to 2"):
        stratified_split(np.zeros(3, dtype=np.int64), 7, 0, "val_size=")

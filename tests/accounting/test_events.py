from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lightning_dp.accounting import RELATION, GaussianEvent
from lightning_dp.errors import PrivacyConfigError


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0,),
        (float("nan"),),
        (float("inf"),),
        ("much",),
        (None,),
        (1.0, 0.0),
        (1.0, -0.1),
        (1.0, 1.0001),
        (1.0, float("nan")),
        (1.0, 0.5, "uniform"),
        (1.0, 0.5, "shuffle"),
        (1.0, 0.5, "balls_in_bins"),
        (1.0, 1.0, "balls_in_bins", 0.0, RELATION, 0),
        (1.0, 1.0, "balls_in_bins", 0.0, RELATION, 2.5),
        (1.0, 1.0, "balls_in_bins", 0.0, RELATION, True),
        (1.0, 1.0, "balls_in_bins", 0.1, RELATION, 5),
        (1.0, 1.0, "balls_in_bins", 0.0, "replace_one", 5),
        (1.0, 1.0, "shuffle", 0.0, RELATION, 5),
        (1.0, 0.5, "poisson", 0.0, RELATION, 5),
    ],
)
def test_impossible_events_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(PrivacyConfigError):
        GaussianEvent(*arguments)  # type: ignore[arg-type]


def test_fields_become_plain_floats_so_that_a_checkpoint_can_carry_them() -> None:
    event = GaussianEvent(np.float32(0.5), np.float64(0.25))  # type: ignore[arg-type]
    assert type(event.noise_multiplier) is float
    assert type(event.sample_rate) is float
    assert event == GaussianEvent(0.5, 0.25)


def test_events_are_frozen_and_the_relation_is_named() -> None:
    event = GaussianEvent(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.noise_multiplier = 1.0  # type: ignore[misc]
    assert RELATION == "add_or_remove_one"

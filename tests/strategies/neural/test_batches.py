"""Which part of a batch is what: declared, whole, and of one form."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.strategies.neural.batches import BatchLayout, Template

Pair = namedtuple("Pair", "x y")
PAIR = BatchLayout((0,), (1,))
X, Y = torch.arange(12.0).view(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    "layout, batch",
    [
        (PAIR, (X, Y)),
        (PAIR, [X, Y]),
        (PAIR, Pair(X, Y)),
        (BatchLayout(("x",), ("y",)), {"x": X, "y": Y}),
        (BatchLayout((0,), ()), [X]),
        (BatchLayout((0, 2), (1,)), (X, Y, X[:, :1])),
    ],
)
def test_a_stand_in_has_the_form_of_the_batch_and_nothing_of_its_inputs(layout: BatchLayout, batch: Any) -> None:
    template = Template.of(layout, batch)
    made = template.batch(2, {}, {key: batch[key][:2] for key in layout.labels})
    assert type(made) is type(batch)
    template.require(made)
    for key in layout.inputs:
        assert made[key].shape == (2, *batch[key].shape[1:])
        assert made[key].dtype == batch[key].dtype
        assert not made[key].any()
    for key in layout.labels:
        assert torch.equal(made[key], batch[key][:2])


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X,),
        (X, Y, Y),
        {"x": X, "y": Y},
        (X, [0, 1, 2, 0]),
        (X, Y[:3]),
        (X, torch.tensor(1)),
        "xy",
    ],
)
def test_a_part_that_nobody_declared_is_refused(batch: Any) -> None:
    with pytest.raises(PrivacyConfigError):
        PAIR.check(batch)


def test_a_part_cannot_be_input_and_label() -> None:
    with pytest.raises(PrivacyConfigError):
        BatchLayout((0, 1), (1,)).check((X, Y))


@pytest.mark.parametrize("other", [(X[:, :2], Y), (X.double(), Y), [X, Y], (X, Y.float())])
def test_samples_of_another_form_are_refused(other: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="differ in shape"):
        Template.of(PAIR, (X, Y)).require(other)


@pytest.mark.parametrize("batch", [X, (X, Y), [X], {0: X}])
def test_inputs_are_found_in_batches_for_prediction(batch: Any) -> None:
    changed = PAIR.map_inputs(batch, lambda x: x + 1)
    assert type(changed) is type(batch)
    assert torch.equal(changed if isinstance(changed, torch.Tensor) else changed[0], X + 1)


def test_a_batch_of_unknown_form_is_refused_for_evaluation() -> None:
    with pytest.raises(PrivacyConfigError):
        PAIR.map_inputs(object(), lambda x: x)

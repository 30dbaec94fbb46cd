"""Releases on two processes are those of one: each sample once, by one rank; one ledger; equal networks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.strategies.helpers import dataset
from tests.strategies.scripts.neural_ranks import main
from tests.strategies.test_ranks import start

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What each of two ranks saw, and what one process alone saw."""
    folder = tmp_path_factory.mktemp("ranks")
    start("neural_ranks.py", str(folder), "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(folder, 1)
    first, second, alone = (torch.load(folder / name, weights_only=True) for name in ("2-0.pt", "2-1.pt", "1-0.pt"))
    return first, second, alone


def test_two_ranks_release_what_one_does_and_train_alike(ranks: tuple[Found, Found, Found]) -> None:
    first, second, alone = (found["exact"] for found in ranks)
    assert torch.equal(first["vectors"], second["vectors"])
    torch.testing.assert_close(first["vectors"], alone["vectors"])
    assert torch.equal(first["labels"], alone["labels"])
    assert torch.equal(first["parameters"], second["parameters"])


def test_gradients_are_the_mean_over_ranks(ranks: tuple[Found, Found, Found]) -> None:
    """Two halves of each batch, and the batch."""
    first, _, alone = (found["exact"] for found in ranks)
    assert first["sizes"] == [32] * 2
    assert alone["sizes"] == [64] * 2
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-4, atol=1e-6)


def test_all_ranks_hold_the_same_noise(ranks: tuple[Found, Found, Found]) -> None:
    first, second, alone = (found["noisy"] for found in ranks)
    for key in ("vectors", "labels", "parameters"):
        assert torch.equal(first[key], second[key]), key
    assert not torch.isclose(first["vectors"], alone["vectors"]).any()
    noise = first["vectors"][0] - ranks[0]["exact"]["vectors"][0][:63]
    assert noise.unique().numel() == noise.numel()  # no rank repeats another's
    assert bool((noise.abs().sum(1) > 0).all())  # and none leaves a sample out


def test_labels_are_randomised_once(ranks: tuple[Found, Found, Found]) -> None:
    truth = dataset(63).tensors[1]
    for found in ranks:
        assert 0 < int((found["noisy"]["labels"] != truth).sum()) < 60


def test_one_ledger(ranks: tuple[Found, Found, Found]) -> None:
    assert len({found["noisy"]["eps"] for found in ranks}) == 1
    assert len({found["noisy"]["noise_multiplier"] for found in ranks}) == 1
    assert [found["noisy"]["ledger"] for found in ranks] == [2, 2, 2]
    assert [found["rewound"]["ledger"] for found in ranks] == [1, 1, 1]
    assert 2.97 < ranks[0]["noisy"]["eps"] <= 3

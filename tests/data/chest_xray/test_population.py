from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_dp.data import ChestXRayDataModule, FaintFindings
from lightning_dp.data.chest_xray import Visits, choose_patients, population
from lightning_dp.data.chest_xray import module as module_file
from lightning_dp.data.chest_xray.population import draw_visits
from tests.data.chest_xray.standins import masks, table

FAINT = FaintFindings("sex", "female", share=0.5)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ChestXRayDataModule:
    monkeypatch.setattr(module_file, "read_nih_table", table)
    monkeypatch.setattr(module_file, "read_lung_masks", masks)
    return ChestXRayDataModule(
        n_train=60, n_val=0, n_test=80, image_size=16, noise=0.05, unfairness=FAINT, cache=tmp_path
    )


def test_with_and_without_the_unfairness_all_else_is_the_same(data: ChestXRayDataModule) -> None:
    with_it, without = (data.population(300, seed=3, planted=planted) for planted in (True, False))
    np.testing.assert_array_equal(with_it["labels"], without["labels"])
    np.testing.assert_array_equal(with_it["levels"], without["levels"])
    np.testing.assert_array_equal(without["amount"], without["labels"])
    fainter = (with_it["amount"] != without["amount"]).any(1)
    assert fainter.sum() > 20
    assert (with_it["levels"][fainter, 0] == 0).all()
    np.testing.assert_array_equal(with_it["inputs"][~fainter], without["inputs"][~fainter])
    assert (with_it["inputs"][fainter] != without["inputs"][fainter]).any((1, 2, 3)).all()


def test_the_control_is_the_planted_variant_without_the_unfairness(data: ChestXRayDataModule, tmp_path: Path) -> None:
    control = ChestXRayDataModule(n_train=60, n_val=0, n_test=80, image_size=16, noise=0.05, cache=tmp_path)
    np.testing.assert_array_equal(control.arrays()["test/labels"], data.arrays()["test/labels"])
    same = (data.arrays()["test/amount"] == data.arrays()["test/labels"]).all(1)
    np.testing.assert_array_equal(control.arrays()["test/inputs"][same], data.arrays()["test/inputs"][same])
    assert not same.all()


def test_a_seed_draws_patients_of_its_own(data: ChestXRayDataModule) -> None:
    first, second, again = (data.population(50, seed=seed)["inputs"] for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any((1, 2, 3)).all()


def test_masks_are_those_of_the_test_part(data: ChestXRayDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[set[int]] = []
    real = population.simulate

    def simulate(masks: object, mask_of_patient: np.ndarray, *rest: object) -> object:
        used.append(set(mask_of_patient.tolist()))
        return real(masks, mask_of_patient, *rest)

    tested = set(data.arrays()["test/mask"].tolist())
    monkeypatch.setattr(population, "simulate", simulate)
    data.population(200)
    assert used == [tested]
    assert not tested & set(data.arrays()["train/mask"].tolist())


@pytest.mark.parametrize("with_finding", [0.5, 0.2, None])
def test_visits_are_distributed_as_in_the_test_part(with_finding: float | None) -> None:
    """Frequencies of findings and sex, against the test part's way to draw, over many tables' worth of draws."""
    visits = table(300)
    rng = np.random.default_rng(0)
    drawn = draw_visits(visits, 20_000, rng, with_finding)
    n = 40
    of_part = [first_visits(choose_patients(visits, n, 2, rng, with_finding)) for _ in range(300)]
    for name in ("labels", "sex"):
        one = getattr(drawn, name).reshape(len(drawn), -1)
        other = np.concatenate([getattr(part, name) for part in of_part]).reshape(300 * n, -1)
        error = np.sqrt(0.25 / len(one) + 0.25 / len(other))
        assert np.abs(one.mean(0) - other.mean(0)).max() < 4 * error, name
    assert len(drawn) == len(set(drawn.patient)) == 20_000


def first_visits(visits: Visits) -> Visits:
    return visits.rows(np.unique(visits.patient, return_index=True)[1])

"""The abdominal phantom: its known AUC, its anatomy, and that no patient is in two places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dp import PrivacyConfigError
from lightning_dp.data import AbdominalPhantom, PancreasResponse, ResponseModel
from lightning_dp.data.abdomen.anatomy import LIVER, ORGANS, PANCREAS, SITES, TUMOUR, Site, draw_patient


def small(folder: Path, **arguments: Any) -> AbdominalPhantom:
    sizes: dict[str, Any] = {"n_train": 4, "n_val": 2, "n_test": 3, "size": 16, "slices": 3}
    return AbdominalPhantom(**{**sizes, **arguments}, folder=folder)


def cohort(folder: Path, **arguments: Any) -> PancreasResponse:
    sizes: dict[str, Any] = {"n_train": 4, "n_val": 2, "n_test": 3, "size": 16}
    return PancreasResponse(**{**sizes, **arguments}, folder=folder)


def auc(labels: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> float:
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = labels == 1
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


@pytest.mark.parametrize("wanted", [0.65, 0.8, 0.9])
def test_bayes_auc_is_that_of_a_simulation(wanted: float) -> None:
    model = ResponseModel.with_bayes_auc(wanted, noise=0.7, weights=(1.0, 2.0, 0.5))
    assert model.bayes_auc == pytest.approx(wanted, abs=1e-6)
    rng = np.random.default_rng(0)
    traits = rng.standard_normal((200_000, 3))
    labels = model.draw(traits, rng)
    # The standard error of an AUC of 200,000 is below 0.0012 (0.29 sqrt(1/100,000 + 1/100,000)).
    assert auc(labels, model.score(traits)) == pytest.approx(wanted, abs=4 * 0.0012)
    assert auc(labels, traits @ [1.0, 2.0, 1.5]) < wanted
    assert labels.mean() == pytest.approx(0.5, abs=0.005)


def test_response_model_at_its_limits() -> None:
    assert ResponseModel.with_bayes_auc(0.5).bayes_auc == pytest.approx(0.5)
    assert ResponseModel(1e6, 0.0).bayes_auc == pytest.approx(1.0, abs=1e-3)
    for value in (0.4, 1.0):
        with pytest.raises(PrivacyConfigError, match=r"0\.99"):
            ResponseModel.with_bayes_auc(value)
    with pytest.raises(PrivacyConfigError, match="gain"):
        ResponseModel(-1.0)
    with pytest.raises(PrivacyConfigError, match="weight"):
        ResponseModel(1.0, 1.0, (0.0, 0.0, 0.0))


def test_organs_have_their_attenuation_and_the_tumour_lies_in_the_pancreas() -> None:
    quiet = Site(noise=0.0)
    rng = np.random.default_rng(0)
    found: dict[int, list[float]] = {LIVER: [], PANCREAS: [], TUMOUR: []}
    touching = 0
    for _ in range(60):
        patient = draw_patient((24, 24, 24), np.zeros(3), quiet, rng)
        for label in found:
            if (patient.labels == label).any():
                found[label].append(float(patient.image[patient.labels == label].mean()))
        if (patient.labels == TUMOUR).any():
            box = [slice(max(int(i.min()) - 1, 0), int(i.max()) + 2) for i in np.nonzero(patient.labels == TUMOUR)]
            touching += bool((patient.labels[tuple(box)] == PANCREAS).any())
    for label in (LIVER, PANCREAS):
        organ = ORGANS[label]
        assert np.mean(found[label]) == pytest.approx(organ.hounsfield, abs=4 * organ.spread / 60**0.5 + 4)
    assert np.mean(found[TUMOUR]) == pytest.approx(ORGANS[PANCREAS].hounsfield - 45, abs=8)
    assert touching == len(found[TUMOUR]) >= 58


def test_traits_show_in_the_image() -> None:
    def tumour(place: int, value: float) -> np.ndarray[Any, Any]:
        traits = np.zeros(3)
        traits[place] = value
        voxels = []
        for seed in range(20):
            patient = draw_patient((24, 24, 24), traits, Site(0.0), np.random.default_rng(seed))
            voxels.append(patient.image[patient.labels == TUMOUR])
        return np.array([[v.std(), -v.mean(), len(v)] for v in voxels]).mean(0)

    for place in range(3):
        assert tumour(place, 1.5)[place] > 1.2 * tumour(place, -1.5)[place] + (place == 1) * 10


def test_a_smaller_field_shows_the_pancreas_larger() -> None:
    def voxels(field: float) -> float:
        patients = [draw_patient((16,) * 3, np.zeros(3), SITES[0], np.random.default_rng(s), field) for s in range(10)]
        return float(np.mean([(p.labels >= PANCREAS).sum() for p in patients]))

    assert voxels(0.6) == pytest.approx(voxels(1.0) / 0.6**3, rel=0.25)


def test_sites_differ_in_noise_and_contrast() -> None:
    images = [draw_patient((4, 32, 32), np.zeros(3), site, np.random.default_rng(0)).image for site in SITES]
    air = [float(image[:, :2].std()) for image in images]  # outside the body
    assert air[2] < air[0] < air[1]


def test_no_patient_is_in_two_parts_or_cohorts(tmp_path: Path) -> None:
    parts = [
        set(module.arrays()[f"{part}/unit_id"].tolist())
        for module in (small(tmp_path), cohort(tmp_path))
        for part in ("train", "val", "test")
    ]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 18
    larger = small(tmp_path, n_train=6).patients()
    assert (larger["test/images"] == small(tmp_path).patients()["test/images"]).all()  # nobody moves


def test_slices_of_a_patient_are_theirs(tmp_path: Path) -> None:
    slices, volumes = small(tmp_path, target="pancreas"), small(tmp_path, target="pancreas", dims=3)
    found = slices.arrays()
    assert found["train/images"].shape == (12, 1, 16, 16)
    assert found["train/unit_id"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found["train/images"].dtype == np.float32
    assert np.abs(found["train/images"]).max() <= 1
    assert volumes.arrays()["train/images"].shape == (4, 1, 16, 16, 16)
    masks = volumes.arrays()["train/masks"]
    organs = volumes.patients()["train/masks"]
    assert ((masks == 1) == (organs == PANCREAS)).all()
    assert ((masks == 2) == (organs == TUMOUR)).all()
    slices.setup()
    images, targets, owners = next(iter(slices.test_dataloader()))
    assert (images.shape, targets.shape, owners.dtype) == ((9, 1, 16, 16), (9, 16, 16), torch.int64)


def test_the_same_seed_gives_the_same_patients(tmp_path: Path) -> None:
    one, two, other = (cohort(tmp_path / str(i), seed=seed).patients() for i, seed in enumerate((0, 0, 1)))
    assert all((one[name] == two[name]).all() for name in one)
    assert not (one["train/images"] == other["train/images"]).all()


def test_the_response_cohort_knows_its_ceiling(tmp_path: Path) -> None:
    data = cohort(tmp_path, bayes_auc=0.7, n_val=0)
    assert data.bayes_auc == pytest.approx(0.7, abs=1e-6)
    data.setup()
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (3, 1, 16, 16, 16)
    assert set(labels.tolist()) <= {0, 1}


def test_bad_settings_are_explained(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="PancreasResponse"):
        small(tmp_path, target="response")
    with pytest.raises(PrivacyConfigError, match="sites=4"):
        small(tmp_path, sites=4)
    with pytest.raises(PrivacyConfigError, match="field=0"):
        small(tmp_path, field=0.0)
    with pytest.raises(PrivacyConfigError, match="positive"):
        small(tmp_path, n_train=0)

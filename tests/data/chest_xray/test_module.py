from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dp.data import ChestXRayDataModule, FaintFindings
from lightning_dp.data.chest_xray import module as module_file
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.metrics import Groups
from tests.data.chest_xray.standins import masks, table


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "read_nih_table", table)
    monkeypatch.setattr(module_file, "read_lung_masks", masks)


def small(tmp_path: Path, **settings: Any) -> ChestXRayDataModule:
    defaults: dict[str, Any] = {"batch_size": 8, "n_train": 60, "n_val": 20, "n_test": 80, "cache": tmp_path}
    return ChestXRayDataModule(**{**defaults, "image_size": 16, **settings})


def test_batches_are_what_the_monitors_expect(tmp_path: Path) -> None:
    data = small(tmp_path)
    data.prepare_data()
    data.setup()
    images, labels, levels = next(iter(data.train_dataloader()))
    assert images.shape == (8, *data.input_shape) == (8, 1, 16, 16)
    assert (images.dtype, labels.dtype, levels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert labels.shape == (8, data.num_labels) == (8, 3)
    assert Groups(data.attributes).encode(levels, 8).shape == (8,)
    assert len(data.val_dataloader().dataset) == 20
    assert not data.card.real


def test_no_patient_and_no_mask_is_in_two_parts(tmp_path: Path) -> None:
    arrays = small(tmp_path).arrays()
    for name in ("mask", "patient"):
        used = [set(arrays[f"{part}/{name}"]) for part in ("train", "val", "test")]
        assert not used[0] & used[1]
        assert not used[0] & used[2]
        assert not used[1] & used[2]
    assert sorted(set(arrays["train/unit_id"])) == list(range(60))
    assert len(arrays["train/unit_id"]) > 60  # several visits
    for part, n in (("val", 20), ("test", 80)):
        assert len(arrays[f"{part}/unit_id"]) == len(set(arrays[f"{part}/unit_id"])) == n
    owners = set(zip(arrays["train/patient"], arrays["train/unit_id"], strict=True))
    assert len(owners) == len(set(arrays["train/patient"])) == 60  # a unit is a patient, and a patient one unit


def test_a_patient_keeps_mask_and_sex(tmp_path: Path) -> None:
    arrays = small(tmp_path, max_visits=3).arrays()
    for patient in range(60):
        rows = arrays["train/unit_id"] == patient
        assert 1 <= rows.sum() <= 3
        assert len(set(arrays["train/mask"][rows])) == len(set(arrays["train/levels"][rows, 0])) == 1


def test_the_second_module_reads_what_the_first_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(tmp_path).arrays()
    monkeypatch.setattr(module_file, "make_parts", lambda *args: pytest.fail("made again"))
    again = small(tmp_path).arrays()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_findings_of_one_group_are_faint_as_often_as_said(tmp_path: Path) -> None:
    faint = FaintFindings("sex", "male", share=0.5, contrast=0.25)
    arrays = small(tmp_path, n_train=20, n_test=300, n_val=0, unfairness=faint).arrays()
    amount, labels, male = arrays["test/amount"], arrays["test/labels"], arrays["test/levels"][:, 0] == 1
    np.testing.assert_array_equal(amount[~male], labels[~male])
    assert set(np.unique(amount[male])) == {0.0, 0.25, 1.0}
    n = int(labels[male].sum())
    assert abs((amount[male] == 0.25).sum() / n - 0.5) < 4 * np.sqrt(0.25 / n)


def test_the_planted_parity_is_the_simulated_one(tmp_path: Path) -> None:
    """A detector that sees the amounts, and so misses the invisible findings alone, has the gap that was computed."""
    faint = FaintFindings("age", "30-59", share=0.7)
    data = small(tmp_path, n_train=20, n_test=300, n_val=0, unfairness=faint, image_size=32, noise=0.02)
    arrays = data.arrays()
    right = ((arrays["test/amount"] > 0) == (arrays["test/labels"] > 0)).mean(1)
    group = arrays["test/levels"][:, 1] == 1
    found = right[group].mean() - right[~group].mean()
    known = data.planted_parity("age")["30-59"]
    assert known < -0.05
    n = arrays["test/labels"][group].sum()
    error = np.sqrt(0.7 * 0.3 * n) / 3 / group.sum()
    assert abs(found - known) < 4 * error + 1e-3
    assert data.planted_parity("sex")["female"] == -data.planted_parity("sex")["male"]


def test_the_control_has_no_gap(tmp_path: Path) -> None:
    data = small(tmp_path, n_train=20, n_test=300, n_val=0, image_size=32, noise=0.02)
    assert abs(data.planted_parity("sex")["female"]) < 1e-4
    assert data.ideal_accuracies().min() > 0.999


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"unfairness": FaintFindings("sex", "other")}, "no group 'other' by 'sex'"),
        ({"unfairness": FaintFindings("race", "x")}, "no group 'x' by 'race'"),
        ({"n_train": 0}, "at least 1"),
        ({"noise": 0.0}, "above 0"),
        ({"image_size": 4}, "at least 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        small(tmp_path, **wrong)


def test_more_patients_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="ask for fewer"):
        small(tmp_path, n_train=5000).prepare_data()


def test_too_few_masks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "read_lung_masks", lambda: masks(2))
    with pytest.raises(PrivacyConfigError, match="2 masks are too few"):
        small(tmp_path).prepare_data()

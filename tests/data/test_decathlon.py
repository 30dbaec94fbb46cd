"""The Decathlon reader on three patients made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_dp import PrivacyConfigError
from lightning_dp.data import DecathlonDataModule
from lightning_dp.data.decathlon import read_task, read_volume
from lightning_dp.errors import PrivacyWarning

nibabel = pytest.importorskip("nibabel")


def write(path: Path, volume: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def task(root: Path, n: int = 4) -> Path:
    """``n`` patients of 8 x 6 x (3 + k) voxels: liver at HU 100 in one half, a tumour of one voxel."""
    cases = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for k in range(n):
        mask = np.zeros((8, 6, 3 + k), np.uint8)
        mask[:4] = 1
        mask[0, 0, k] = 2
        image = np.where(mask > 0, 100, -1000).astype(np.int16)
        image[..., 0] += k
        case = {"image": f"./imagesTr/liver_{k}.nii.gz", "label": f"./labelsTr/liver_{k}.nii.gz"}
        write(root / case["image"], image)
        write(root / case["label"], mask)
        cases.append(case)
    facts = {"name": "Liver", "licence": "CC-BY-SA 4.0", "labels": {"0": "background", "1": "liver", "2": "cancer"}}
    (root / "dataset.json").write_text(json.dumps({**facts, "training": cases, "test": []}))
    return root


def test_volumes_come_with_axial_slices_first(tmp_path: Path) -> None:
    found = read_task(task(tmp_path))
    assert (found.name, len(found.cases), found.labels[2]) == ("Liver", 4, "cancer")
    image, mask = read_volume(*found.cases[1], [0, 1, 2])
    assert image.shape == mask.shape == (4, 6, 8)
    assert image.dtype == np.float32
    assert (image[1, :, :4] == 100).all()
    assert mask[1, 0, 0] == 2
    # A file with its first axis reversed, and an affine that says so, is the same volume.
    write(tmp_path / "flipped.nii.gz", image.transpose(2, 1, 0)[::-1], np.diag([-1.0, 1, 1, 1]))
    again, _ = read_volume(tmp_path / "flipped.nii.gz", found.cases[1][1], [0, 1, 2])
    assert (again == image).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_patients_are_split_and_own_their_samples(tmp_path: Path, dims: Any) -> None:
    data = DecathlonDataModule(task(tmp_path), dims=dims, size=4, slices=3, n_val=1, n_test=1, batch_size=2)
    found = data.arrays()
    owners = [set(found[f"{part}/unit_id"].tolist()) for part in ("train", "val", "test")]
    assert set().union(*owners) == {0, 1, 2, 3}
    assert sum(map(len, owners)) == 4
    per_patient = 3 if dims == 2 else 1
    assert found["train/images"].shape == (2 * per_patient, 1, *(4,) * dims)
    assert found["train/masks"].shape == (2 * per_patient, *(4,) * dims)
    # The half that is liver or tumour, at HU 100 in a window from -160 to 240, and air.
    assert (found["train/masks"][..., :2] == 1).all()
    assert (found["train/masks"][..., 2:] == 0).all()
    assert found["train/images"][..., 0].ravel()[-1] == pytest.approx(0.3, abs=0.02)
    assert (found["train/images"][..., -1] == -1).all()
    data.prepare_data()
    data.setup()
    images, masks, volumes = next(iter(data.train_dataloader()))
    assert len(images) == len(masks) == len(volumes) == 2
    assert data.train_dataloader().dataset.unit_id is not None  # type: ignore[attr-defined]


def test_tumour_as_a_class_of_its_own_and_all_slices(tmp_path: Path) -> None:
    data = DecathlonDataModule(
        task(tmp_path), foreground=[[1], [2]], size=8, slices=None, n_test=1, n_val=0, window=(0.0, 200.0)
    )
    found = data.arrays()
    slices = {k: 3 + k for k in range(4)}
    assert data.num_classes == 3
    assert "val/images" not in found
    assert len(found["train/images"]) == sum(slices[k] for k in set(found["train/unit_id"].tolist()))
    assert set(np.unique(found["train/masks"])) == {0, 1, 2}
    assert found["train/images"].max() == pytest.approx(0.03, abs=0.01)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give root="):
        read_task(tmp_path)
    root = task(tmp_path / "liver")
    (root / "labelsTr" / "liver_2.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="liver_2"):
        DecathlonDataModule(root).prepare_data()


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": {"a": "b"}, "training": []}', '{"labels": {}}'])
def test_another_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match="needs 'labels'"):
        read_task(tmp_path)


def test_a_patient_listed_twice_is_refused(tmp_path: Path) -> None:
    root = task(tmp_path)
    facts = json.loads((root / "dataset.json").read_text())
    facts["training"].append({**facts["training"][0], "image": "imagesTr/../imagesTr/liver_0.nii.gz"})
    (root / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="twice"):
        read_task(root)


def test_damaged_volumes_are_refused(tmp_path: Path) -> None:
    root = task(tmp_path)
    image, mask = read_task(root).cases[0]
    with pytest.raises(ValueError, match=r"\[2\]"):
        read_volume(image, mask, [0, 1])
    with pytest.raises(ValueError, match="resample the mask"):
        read_volume(image, read_task(root).cases[1][1], [0, 1, 2])
    write(tmp_path / "four.nii.gz", np.zeros((2, 2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="one modality"):
        read_volume(tmp_path / "four.nii.gz", mask, [0, 1, 2])
    write(tmp_path / "nan.nii.gz", np.full((8, 6, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="no numbers"):
        read_volume(tmp_path / "nan.nii.gz", mask, [0, 1, 2])


@pytest.mark.parametrize("content", [b"nothing", b"", "cut"])
def test_files_that_are_no_nifti_are_named(tmp_path: Path, content: bytes | str) -> None:
    image, mask = read_task(task(tmp_path)).cases[0]
    image.write_bytes(image.read_bytes()[:60] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"liver_0.nii.gz cannot be read as NIfTI"):
        read_volume(image, mask, [0, 1, 2])


def test_empty_masks_are_named_and_refused_where_there_is_nothing_else(tmp_path: Path) -> None:
    root = task(tmp_path)
    cases = read_task(root).cases
    write(cases[0][1], np.zeros((8, 6, 3), np.uint8))
    with pytest.warns(
        PrivacyWarning, match=r"1 of 4 masks of the part train hold none of foreground=\[\[1, 2\]\].*liver_0"
    ):
        found = DecathlonDataModule(root, n_test=0, size=4).arrays()
    assert set(found["train/unit_id"].tolist()) == {0, 1, 2, 3}  # kept: a patient without the organ is a patient
    for k, (_, mask) in enumerate(cases):
        write(mask, np.zeros((8, 6, 3 + k), np.uint8))
    with pytest.raises(ValueError, match="nothing to learn. Name the values of the organ in foreground="):
        DecathlonDataModule(root, n_test=0, size=4).arrays()


def test_bad_settings_are_explained(tmp_path: Path) -> None:
    root = task(tmp_path)
    with pytest.raises(PrivacyConfigError, match="none of 4 patients"):
        DecathlonDataModule(root, n_val=2, n_test=2).arrays()
    with pytest.raises(PrivacyConfigError, match="below 0"):
        DecathlonDataModule(root, n_val=-1, n_test=2).arrays()
    with pytest.raises(PrivacyConfigError, match=r"\[7\]"):
        DecathlonDataModule(root, foreground=[[7]], n_test=1).arrays()
    with pytest.raises(PrivacyConfigError, match="low to high"):
        DecathlonDataModule(root, window=(1.0, 0.0))

"""The MedMNIST reader on files made by hand in the distributed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dp.data import MedMNISTDataModule
from lightning_dp.data.medmnist import MEDMNIST, read_medmnist
from lightning_dp.errors import PrivacyConfigError, PrivacyWarning

FEW = (3, 2, 2)


def write(folder: Path, name: str, size: int = 28, **changes: Any) -> Path:
    """A file with a few samples; ``changes`` replace arrays by key, or leave them out (None)."""
    facts, rng = MEDMNIST[name], np.random.default_rng(0)
    shape = (size,) * (3 if facts.volumes else 2) + ((3,) if facts.channels == 3 else ())
    arrays: dict[str, Any] = {}
    for part, n in zip(("train", "val", "test"), FEW, strict=True):
        width = facts.num_classes if facts.multi_label else 1
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 2, (n, width), dtype=np.uint8)
    kept = {key: value for key, value in (arrays | changes).items() if value is not None}
    path = folder / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    np.savez(path, **kept)
    return path


@pytest.mark.parametrize(
    "name, shape",
    [
        ("organmnist3d", (3, 1, 28, 28, 28)),
        ("nodulemnist3d", (3, 1, 28, 28, 28)),
        ("breastmnist", (3, 1, 28, 28)),
        ("bloodmnist", (3, 3, 28, 28)),
    ],
)
def test_batches_have_channels_first_and_run_from_0_to_1(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = write(tmp_path, name)
    data = MedMNISTDataModule(tmp_path, name, batch_size=3)
    data.setup()
    inputs, labels = next(iter(data.train_dataloader()))
    assert inputs.shape == shape
    assert (inputs.dtype, labels.dtype, labels.shape) == (torch.float32, torch.int64, (3,))
    assert 0 <= float(inputs.min()) < 0.01
    assert 0.99 < float(inputs.max()) <= 1
    (val, _), (test, _) = next(iter(data.val_dataloader())), next(iter(data.test_dataloader()))
    raw = np.load(path)["test_images"]
    truth = torch.from_numpy(np.moveaxis(raw, -1, 1) if shape[1] == 3 else raw[:, None]).float() / 255
    torch.testing.assert_close(test, truth)
    assert not torch.equal(val, test)


def test_several_labels_may_hold(tmp_path: Path) -> None:
    write(tmp_path, "chestmnist")
    labels = read_medmnist(tmp_path, "chestmnist")["train/labels"]
    assert (labels.shape, labels.dtype) == ((3, 14), np.float32)


def test_larger_versions_have_a_file_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "breastmnist", 64)
    assert read_medmnist(tmp_path, "breastmnist", 64)["test/inputs"].shape == (2, 1, 64, 64)
    with pytest.raises(FileNotFoundError, match="breastmnist.npz is not there.*root="):
        read_medmnist(tmp_path, "breastmnist")


def test_another_number_of_samples_is_said_and_read(tmp_path: Path) -> None:
    write(tmp_path, "organmnist3d")
    with pytest.warns(PrivacyWarning, match=r"has \(3, 2, 2\) samples .* published are \(971, 161, 610\)"):
        MedMNISTDataModule(tmp_path, "organmnist3d").prepare_data()


IMAGES = np.zeros((3, 28, 28, 28), np.uint8)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"train_labels": np.array([[0], [11], [1]])}, "holds 11; the labels of this set are from 0 to 10"),
        ({"train_labels": np.zeros((3, 2))}, r"shape \(3, 2\); expected \(n, 1\)"),
        ({"train_labels": np.zeros((2, 1))}, "different lengths in its part train"),
        ({"train_images": IMAGES.astype(np.float32)}, "float32, not uint8"),
        ({"train_images": IMAGES[:, :20]}, r"shape \(20, 28, 28\); expected \(28, 28, 28\).*fit_volume"),
        ({"train_images": IMAGES[..., 0]}, r"shape \(28, 28\); expected \(28, 28, 28\)"),
        ({"val_images": None}, "no MedMNIST file: it has no val_images. It needs train_images"),
        (
            {"train_images": np.array([IMAGES[0], None], dtype=object)},
            "train_images is no array of numbers.*unequal size.*fit_volume",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    write(tmp_path, "organmnist3d", **changes)
    with pytest.raises(ValueError, match=match):
        read_medmnist(tmp_path, "organmnist3d")


def test_damaged_files_and_unknown_names_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "organmnist3d")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged|no array of numbers"):
        read_medmnist(tmp_path, "organmnist3d")
    with pytest.raises(PrivacyConfigError, match=r"no MedMNIST set; choose one of pathmnist"):
        MedMNISTDataModule(tmp_path, "organmnist")

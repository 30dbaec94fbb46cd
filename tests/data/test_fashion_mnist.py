"""The Fashion-MNIST module on tiny files in the same format, and on the real set where it is installed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import RandomSampler

from lightning_dp.data import fashion_mnist
from lightning_dp.data.fashion_mnist import FashionMNISTDataModule, find_fashion_mnist, read_fashion_mnist
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.scattering import ScatteringTransform


def _write(folder: Path, stem: str, array: np.ndarray, compressed: bool = True) -> None:
    magic = 0x0800 + array.ndim
    content = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    name, content = (f"{stem}.gz", gzip.compress(content)) if compressed else (stem, content)
    (folder / name).write_bytes(content)


def _fill(folder: Path, train: int = 40, test: int = 10, compressed: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for stem, n in (("train", train), ("t10k", test)):
        arrays[f"{stem}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28))
        arrays[f"{stem}-labels-idx1-ubyte"] = np.arange(n) % 10
    for stem, array in arrays.items():
        _write(folder, stem, array, compressed)
    return arrays


@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_pixels_are_the_bytes_over_255(tmp_path: Path, below: str, compressed: bool) -> None:
    arrays = _fill(tmp_path / below, compressed=compressed)
    module = FashionMNISTDataModule(root=tmp_path, batch_size=40)
    module.prepare_data()
    module.setup("fit")
    images, labels = module.train_dataloader().dataset[:]
    assert images.shape == (40, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(images[:, 0].numpy() * 255, arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(labels.numpy(), arrays["train-labels-idx1-ubyte"])
    assert not is_overridden("val_dataloader", module)


def test_validation_is_held_out_of_training(tmp_path: Path) -> None:
    _fill(tmp_path)
    module = FashionMNISTDataModule(root=tmp_path, batch_size=8, val_size=10)
    module.setup()
    train, val = module.train_dataloader(), module.val_dataloader()
    assert (len(train.dataset), len(val.dataset), len(module.test_dataloader().dataset)) == (30, 10, 10)
    seen = {image.numpy().tobytes() for image, _ in train.dataset}
    assert not seen & {image.numpy().tobytes() for image, _ in val.dataset}
    np.testing.assert_array_equal(np.bincount(val.dataset.tensors[1].numpy()), np.ones(10))
    assert isinstance(train.sampler, RandomSampler)
    assert not isinstance(val.sampler, RandomSampler)


def test_scattering_features_are_those_of_each_image_alone(tmp_path: Path) -> None:
    _fill(tmp_path)
    module = FashionMNISTDataModule(root=tmp_path, features="scattering")
    module.setup()
    transform = ScatteringTransform((28, 28), normalisation_groups=27)
    pixels, _ = read_fashion_mnist(tmp_path, "train")
    features = module.train_dataloader().dataset.tensors[0]
    assert features.shape == (40, *module.input_shape)
    torch.testing.assert_close(features[[7]], transform(pixels[[7]]), rtol=1e-4, atol=1e-4)
    assert module.test_dataloader().dataset.tensors[0].shape == (10, 81, 7, 7)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="is not a folder"):
        find_fashion_mnist(tmp_path / "absent")
    with pytest.raises(PrivacyConfigError, match="choose 'pixels' or 'scattering'"):
        FashionMNISTDataModule(features="wavelets")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="Pass root="):
        read_fashion_mnist(tmp_path, "train")
    assert find_fashion_mnist(tmp_path) is None
    _write(tmp_path, "train-images-idx3-ubyte", np.zeros((3, 28, 28)))
    _write(tmp_path, "train-labels-idx1-ubyte", np.zeros(4))
    with pytest.raises(ValueError, match=r"expected \(n, 28, 28\) and \(n,\)"):
        read_fashion_mnist(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"):
        FashionMNISTDataModule(root=tmp_path).prepare_data()  # and not the copy of Debian's package in its place
    _write(tmp_path, "train-labels-idx1-ubyte", np.array([0, 10, 1]))
    with pytest.raises(ValueError, match="holds the label 10"):
        read_fashion_mnist(tmp_path, "train")


def test_download_is_the_last_resort_and_its_failure_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_datasets = pytest.importorskip("torchvision.datasets")

    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(torchvision_datasets, "FashionMNIST", offline)
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        FashionMNISTDataModule(root=tmp_path).prepare_data()
    _fill(tmp_path)
    FashionMNISTDataModule(root=tmp_path).prepare_data()  # found: no download is tried


def test_real_set() -> None:
    folder = find_fashion_mnist()
    if folder is None:
        pytest.skip("Fashion-MNIST is not installed (Debian package dataset-fashion-mnist)")
    for part, n in (("train", 60_000), ("test", 10_000)):
        images, labels = read_fashion_mnist(folder, part)  # type: ignore[arg-type]
        assert images.shape == (n, 1, 28, 28)
        assert torch.equal(torch.bincount(labels), torch.full((10,), n // 10))
    assert FashionMNISTDataModule.card.n == 60_000

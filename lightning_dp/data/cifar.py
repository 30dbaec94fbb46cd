"""CIFAR-10 and CIFAR-100, from the files that their authors publish."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.pictures import PictureDataset
from lightning_dp.data.splits import stratified_split
from lightning_dp.errors import PrivacyConfigError

__all__ = ("CIFARDataModule", "read_cifar")

SIDE = 32
PIXELS = 3 * SIDE * SIDE
# Number of classes -> part -> files; first the pickled form, then the binary one, each with its usual folder.
_PICKLED: Mapping[int, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    10: ("cifar-10-batches-py", {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}),
    100: ("cifar-100-python", {"train": ("train",), "test": ("test",)}),
}
_BINARY: Mapping[int, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    10: (
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    ),
    100: ("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}),
}


class CIFARDataModule(ArrayDataModule):
    """50,000 + 10,000 photographs of 32 x 32 pixels in ten or a hundred classes (Krizhevsky 2009).

    Nothing is downloaded: put the authors' archive, unpacked, into ``root`` (``cifar-10-batches-py`` or ``-bin``,
    ``cifar-100-python`` or ``-binary``). The pickled form is read by an unpickler that makes arrays, numbers, texts and
    containers, and refuses everything else, so that a file cannot run code.

    Args:
        root: the folder of the files, or the one above.
        classes: 10 or 100 (the fine labels).
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        augment: random shifts and mirror images in training, see :class:`~lightning_dp.data.pictures.PictureDataset`.
        val_size: training images held out for validation, stratified.
        seed: seed of the split.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Shape:
        Batches ``(pictures, labels)``: float32 ``(N, 3, 32, 32)`` in [-1, 1], int64 ``(N,)``.

    Raises:
        PrivacyConfigError: another number of classes.
        FileNotFoundError: in ``prepare_data``, if the files are not there.
        ValueError: in ``prepare_data``, if they are damaged.
    """

    card = DataCard(
        name="CIFAR-10 and CIFAR-100",
        licence="none stated by the authors; for research, with the citation",
        n=50_000,
        real=True,
        unit="one image",
        source="A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    )

    def __init__(
        self,
        root: str | Path = "data",
        classes: Literal[10, 100] = 10,
        batch_size: int = 4096,
        augment: bool = False,
        val_size: int = 0,
        seed: int = 0,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
    ) -> None:
        if classes not in _PICKLED:
            raise PrivacyConfigError(f"classes={classes!r}: there are CIFAR-10 and CIFAR-100; choose 10 or 100.")
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=val_size > 0)
        self.root, self.classes, self.augment = root, classes, augment
        self.val_size, self.seed = val_size, seed

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classes

    @override
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        images, labels = read_cifar(self.root, self.classes, "train")
        test_images, test_labels = read_cifar(self.root, self.classes, "test")
        found: dict[str, NDArray[Any]] = {"test/inputs": test_images, "test/labels": test_labels}
        kept, held_out = stratified_split(labels, self.val_size, self.seed, "val_size=")
        for part, index in (("train", kept), ("val", held_out)):
            if len(index):
                found |= {f"{part}/inputs": images[index], f"{part}/labels": labels[index]}
        return found

    @override
    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> PictureDataset:
        return PictureDataset(columns, unit_id, augment=self.augment and part == "train")


def read_cifar(
    root: str | Path, classes: Literal[10, 100], part: Literal["train", "test"]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 ``(n, 3, 32, 32)`` and labels int64 ``(n,)`` of one part, from whichever form is there.

    Raises:
        FileNotFoundError: neither form is whole.
        ValueError: a file is damaged, or holds what no data file of CIFAR holds.
    """
    for forms, read in ((_PICKLED, _read_pickled), (_BINARY, _read_binary)):
        folder_name, files = forms[classes]
        for folder in (Path(root), Path(root) / folder_name):
            paths = [folder / name for name in files[part]]
            if all(path.is_file() for path in paths):
                parts = [read(path, classes) for path in paths]
                labels = np.concatenate([label for _, label in parts])
                if labels.size and not 0 <= labels.min() <= labels.max() < classes:
                    raise ValueError(
                        f"{folder} holds the label {labels.max()}; CIFAR-{classes} has 0 to {classes - 1}."
                    )
                return np.concatenate([image for image, _ in parts]).reshape(-1, 3, SIDE, SIDE), labels
    wanted = " or ".join(f"{name}/{files[part][0]}" for name, files in (_PICKLED[classes], _BINARY[classes]))
    raise FileNotFoundError(
        f"CIFAR-{classes} is not in {root}: there is no {wanted}{' and so on' if classes == 10 else ''}. Unpack the authors' "
        "archive there, or give root=."
    )


def _read_binary(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    heads = 1 if classes == 10 else 2  # CIFAR-100 has the coarse label first
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % (heads + PIXELS):
        raise ValueError(
            f"{path} has {content.size} bytes, no multiple of {heads + PIXELS}: it is cut short, or no CIFAR."
        )
    rows = content.reshape(-1, heads + PIXELS)
    return rows[:, heads:], rows[:, heads - 1].astype(np.int64)


def _read_pickled(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged, or no file of CIFAR.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dictionary: it is no file of CIFAR.")
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    images = named.get("data")
    labels = np.asarray(named.get("labels" if classes == 10 else "fine_labels", ()))
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == (len(labels), PIXELS)):
        raise ValueError(f"{path} holds no bytes (n, {PIXELS}) with as many labels: it is no file of CIFAR-{classes}.")
    return images, labels.astype(np.int64)


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickles, and no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r} is refused")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # where NumPy 1 kept it
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    """Makes numbers, texts, containers and arrays; a pickle that names anything else is refused before it is called."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no data file needs and which could run code"
            ) from None

"""MedMNIST: the npz files as they are distributed, checked against what is known of each set."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.volumes import CompactDataset
from lightning_dp.errors import PrivacyConfigError, PrivacyWarning

__all__ = ("MEDMNIST", "MedMNISTDataModule", "MedMNISTFacts", "read_medmnist")

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class MedMNISTFacts:
    """What is published of one set (version 3.0.2 of its metadata).

    Attributes:
        counts: samples for training, validation and test.
        num_classes: classes, or labels of which several may hold.
        channels: 1 or 3.
        volumes: whether samples are volumes.
        multi_label: whether several labels may hold at once.
    """

    counts: tuple[int, int, int]
    num_classes: int
    channels: int = 1
    volumes: bool = False
    multi_label: bool = False


MEDMNIST: Mapping[str, MedMNISTFacts] = {
    "pathmnist": MedMNISTFacts((89996, 10004, 7180), 9, 3),
    "chestmnist": MedMNISTFacts((78468, 11219, 22433), 14, multi_label=True),
    "dermamnist": MedMNISTFacts((7007, 1003, 2005), 7, 3),
    "octmnist": MedMNISTFacts((97477, 10832, 1000), 4),
    "pneumoniamnist": MedMNISTFacts((4708, 524, 624), 2),
    "retinamnist": MedMNISTFacts((1080, 120, 400), 5, 3),
    "breastmnist": MedMNISTFacts((546, 78, 156), 2),
    "bloodmnist": MedMNISTFacts((11959, 1712, 3421), 8, 3),
    "tissuemnist": MedMNISTFacts((165466, 23640, 47280), 8),
    "organamnist": MedMNISTFacts((34561, 6491, 17778), 11),
    "organcmnist": MedMNISTFacts((12975, 2392, 8216), 11),
    "organsmnist": MedMNISTFacts((13932, 2452, 8827), 11),
    "organmnist3d": MedMNISTFacts((971, 161, 610), 11, volumes=True),
    "nodulemnist3d": MedMNISTFacts((1158, 165, 310), 2, volumes=True),
    "adrenalmnist3d": MedMNISTFacts((1188, 98, 298), 2, volumes=True),
    "fracturemnist3d": MedMNISTFacts((1027, 103, 240), 3, volumes=True),
    "vesselmnist3d": MedMNISTFacts((1335, 191, 382), 2, volumes=True),
    "synapsemnist3d": MedMNISTFacts((1230, 177, 352), 2, volumes=True),
}
"""The sets by the names of their files."""


def read_medmnist(root: str | Path, name: str, size: int = 28) -> dict[str, NDArray[Any]]:
    """The parts of one set: ``"train/inputs"`` uint8 ``(n, C, *sizes)``, ``"train/labels"`` int64 ``(n,)``, and so on.

    Labels of a set in which several may hold are float32 ``(n, classes)``.

    Args:
        root: folder with ``<name>.npz``, or ``<name>_<size>.npz`` for the larger sizes.
        name: one of :data:`MEDMNIST`.
        size: length of the sides.

    Raises:
        PrivacyConfigError: for an unknown name.
        FileNotFoundError: the file is not there.
        ValueError: the file is damaged, or does not hold what it should: another shape, channels, or classes.
    """
    if name not in MEDMNIST:
        raise PrivacyConfigError(f"name={name!r} is no MedMNIST set; choose one of {', '.join(MEDMNIST)}.")
    path = Path(root) / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Download {path.name} from the MedMNIST project and pass root= its folder; nothing is "
            "downloaded here."
        )
    facts = MEDMNIST[name]
    arrays: dict[str, NDArray[Any]] = {}
    for part in PARTS:
        images, labels = (_read(path, f"{part}_{kind}") for kind in ("images", "labels"))
        arrays[f"{part}/inputs"] = _inputs(images, facts, size, f"{path.name}: {part}_images")
        arrays[f"{part}/labels"] = _labels(labels, facts, f"{path.name}: {part}_labels")
        if len(images) != len(labels):
            raise ValueError(
                f"{path.name} has images and labels of different lengths in its part {part}, {len(images)} and {len(labels)}: "
                "give one label for each image."
            )
    return arrays


def _read(path: Path, key: str) -> NDArray[Any]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found: NDArray[Any] = file[key]
            return found
    except KeyError as error:
        needed = ", ".join(f"{part}_images, {part}_labels" for part in PARTS)
        raise ValueError(f"{path} is no MedMNIST file: it has no {key}. It needs {needed}.") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again.") from error
    except ValueError as error:  # pickled: an array of arrays, or no npz at all; unpickling could run code
        raise ValueError(
            f"{path}: {key} is no array of numbers, but pickled. Volumes of unequal size cannot be one array: bring them to "
            "one size with lightning_dp.data.fit_volume and save them stacked, as uint8. If you saved nothing else, fetch "
            "the file again."
        ) from error


def _inputs(images: NDArray[Any], facts: MedMNISTFacts, size: int, where: str) -> NDArray[Any]:
    sides = 3 if facts.volumes else 2
    if images.dtype != np.uint8:
        raise ValueError(
            f"{where} is of type {images.dtype}, not uint8 from 0 to 255: scale and round the values, then astype(numpy.uint8)."
        )
    expected = (size,) * sides + ((3,) if facts.channels == 3 else ())
    if images.shape[1:] != expected:
        raise ValueError(
            f"{where} has samples of shape {images.shape[1:]}; expected {expected}. All samples of a set have one size: "
            "bring volumes of other sizes to it with lightning_dp.data.fit_volume, or give size=."
        )
    return np.moveaxis(images, -1, 1) if facts.channels == 3 else images[:, None]


def _labels(labels: NDArray[Any], facts: MedMNISTFacts, where: str) -> NDArray[Any]:
    width = facts.num_classes if facts.multi_label else 1
    if labels.ndim == 1 and width == 1:
        labels = labels[:, None]
    if labels.ndim != 2 or labels.shape[1] != width:
        raise ValueError(f"{where} has the shape {labels.shape}; expected (n, {width}).")
    largest = 1 if facts.multi_label else facts.num_classes - 1
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= largest:
        raise ValueError(f"{where} holds {labels.max()}; the labels of this set are from 0 to {largest}.")
    return labels.astype(np.float32) if facts.multi_label else labels[:, 0].astype(np.int64)


class MedMNISTDataModule(ArrayDataModule):
    """One of the MedMNIST sets (Yang et al. 2023, MedMNIST v2, arXiv 2110.14795), images or volumes, from its npz file.

    The file is looked for in ``root`` and nothing is downloaded. The parts are the published ones. A file with other numbers
    of samples than published (a subset, another version) is read with a warning, since delta and eps go by the number that
    is there; one with other shapes, channels or classes is refused.

    Args:
        root: folder with ``<name>.npz``.
        name: name of the set, such as ``"organmnist3d"``.
        size: length of the sides: 28, or that of one of the larger versions.
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Raises:
        PrivacyConfigError: for an unknown name.

    Shape:
        Batches ``(inputs, labels)``: float32 ``(N, C, 28, 28)`` or ``(N, C, 28, 28, 28)`` in [0, 1], int64 ``(N,)``; labels
        of ChestMNIST float32 ``(N, 14)``.
    """

    card = DataCard(
        name="MedMNIST",
        licence="CC BY 4.0, DermaMNIST CC BY-NC 4.0",
        n=0,
        real=True,
        unit="one image or volume (patients are not told apart)",
        source="J. Yang et al., MedMNIST v2, Scientific Data, 2023, arXiv 2110.14795",
    )

    def __init__(
        self,
        root: str | Path,
        name: str = "organmnist3d",
        size: int = 28,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        if name not in MEDMNIST:
            raise PrivacyConfigError(f"name={name!r} is no MedMNIST set; choose one of {', '.join(MEDMNIST)}.")
        self.root, self.set_name, self.size, self.facts = Path(root), name, size, MEDMNIST[name]
        self.num_classes = self.facts.num_classes

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parts of the file, read afresh."""
        return read_medmnist(self.root, self.set_name, self.size)

    @override
    def prepare_data(self) -> None:
        """Check the file, and say once if it holds other numbers of samples than published."""
        arrays = self.arrays()
        counts = tuple(len(arrays[f"{part}/labels"]) for part in PARTS)
        if counts != self.facts.counts:
            rank_zero_warn(
                f"{self.set_name} has {counts} samples for training, validation and test; published are {self.facts.counts}. "
                "A subset or another version: say so beside its numbers.",
                category=PrivacyWarning,
            )

    @override
    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> CompactDataset:
        """Samples that become float32 in [0, 1] when they are taken."""
        return CompactDataset(columns, 1 / 255, unit_id)

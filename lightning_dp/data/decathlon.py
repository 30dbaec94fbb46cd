"""Folders in the form of the Medical Segmentation Decathlon: NIfTI volumes, masks, and a dataset.json."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightning_dp.data.abdomen.module import hounsfield_window
from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.cache import progress
from lightning_dp.data.card import DataCard
from lightning_dp.errors import PrivacyConfigError, PrivacyWarning
from lightning_dp.optional import require

__all__ = ("DecathlonDataModule", "DecathlonTask", "read_task", "read_volume")


@dataclass(frozen=True)
class DecathlonTask:
    """What a ``dataset.json`` says.

    Args:
        name: of the task.
        licence: of the data.
        labels: the classes' names by their value in the masks.
        cases: image and mask of each patient with a mask.
    """

    name: str
    licence: str
    labels: Mapping[int, str]
    cases: tuple[tuple[Path, Path], ...]


def read_task(root: str | Path) -> DecathlonTask:
    """Read ``root/dataset.json`` and find its files.

    Raises:
        FileNotFoundError: if it, an image or a mask is not there.
        ValueError: if it is no such description.
    """
    root = Path(root)
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: give root= the unpacked folder of a task (Task03_Liver, say), with dataset.json, imagesTr "
            "and labelsTr."
        )
    try:
        facts = json.loads(path.read_text())
        labels = {int(value): str(name) for value, name in facts["labels"].items()}
        cases = tuple((root / case["image"], root / case["label"]) for case in facts["training"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no description of a task ({type(error).__name__}: {error}): it needs 'labels', from values to "
            "names, and 'training', a list of {'image': ..., 'label': ...}."
        ) from error
    if missing := [str(file) for case in cases for file in case if not file.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} files that {path} lists are not there, the first is {missing[0]}. Unpack the whole archive, or "
            "take the cases out of the list."
        )
    if len({image.resolve() for image, _ in cases}) < len(cases):
        # Two numbers for one patient would be two privacy units.
        raise ValueError(f"{path} lists an image twice: list each patient once.")
    return DecathlonTask(str(facts.get("name", root.name)), str(facts.get("licence", "unknown")), labels, cases)


def read_volume(image: Path, mask: Path, labels: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One patient's volume and mask, axial slices first: float32 and uint8 ``(D, H, W)``.

    Raises:
        ModuleNotFoundError: nibabel is not installed.
        ValueError: they differ in shape, are not three-dimensional, or hold values that cannot be.
    """
    nibabel = require("nibabel", "data", "Reading NIfTI files")
    volumes = []
    for path in (image, mask):
        try:
            volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        except (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
            raise ValueError(f"{path} cannot be read as NIfTI ({error}): it is damaged; unpack it again.") from error
        if volume.ndim != 3:
            raise ValueError(
                f"{path} has shape {volume.shape}: one three-dimensional volume was expected (one modality). "
                "Save one modality alone, volume[..., 0] for one."
            )
        volumes.append(volume.transpose(2, 1, 0))  # right, front, head -> head, front, right
    pixels, marks = volumes
    if pixels.shape != marks.shape:
        raise ValueError(f"{image} has shape {pixels.shape} and {mask} {marks.shape}: resample the mask to the image.")
    if not np.isfinite(pixels).all():
        raise ValueError(f"{image} holds values that are no numbers. Replace them, by -1024 (air) for one.")
    if unknown := sorted(set(np.unique(marks).tolist()) - set(labels)):
        raise ValueError(
            f"{mask} holds the labels {unknown}, and dataset.json knows {sorted(labels)} alone: correct "
            "the mask, or add the label to dataset.json."
        )
    return pixels.astype(np.float32), marks.astype(np.uint8)


class DecathlonDataModule(ArrayDataModule):
    """Slices or volumes of a task of the Medical Segmentation Decathlon (Antonelli et al. 2022, Nat Commun 13:4128).

    Volumes are read from ``root`` in `setup`, scaled by a fixed window and resampled; nothing is written anywhere, since
    a copy of patients' data in a cache is one that nobody guards. Patients are split, not slices. The training set's
    ``unit_id`` is the patient.

    Args:
        root: the unpacked folder, with ``dataset.json``.
        foreground: values of the mask by class, from 1 on: ``[[1, 2]]`` takes liver and tumour for one class.
        dims: 2 for axial slices, 3 for whole volumes.
        size: rows and columns after resampling; with ``dims=3`` slices too.
        slices: at most so many slices of a patient with ``dims=2``, evenly spaced; None takes all.
        window: lowest and highest HU, which become -1 and 1.
        n_val: patients held out for choices; 0 for none.
        n_test: patients to test on.
        seed: of the split.
        batch_size: batch size of the train loader; under a private strategy the expected number of units in a step.
        eval_batch_size: batch size of the other loaders.
        num_workers: worker processes of the loaders.

    Shape:
        Batches ``(images, masks, volumes)`` as from :class:`~lightning_dp.data.AbdominalPhantom`.

    Raises:
        FileNotFoundError: in ``prepare_data`` or ``setup``, if files are missing.
        ValueError: there, if they are damaged or do not fit together.
    """

    columns = ("images", "masks", "volumes")
    card = DataCard(
        name="Medical Segmentation Decathlon, Task03 (liver)",
        licence="CC BY-SA 4.0",
        n=131,
        real=True,
        unit="one slice, or with unit='unit_id' one patient",
        source="Antonelli et al., Nat Commun 13:4128, 2022; the numbers are those of Task03 with its masks",
    )

    def __init__(
        self,
        root: str | Path,
        foreground: list[list[int]] | None = None,
        dims: Literal[2, 3] = 2,
        size: int = 256,
        slices: int | None = 64,
        window: tuple[float, float] = (-160.0, 240.0),
        n_val: int = 0,
        n_test: int = 20,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if dims not in (2, 3) or size < 1 or (slices is not None and slices < 1) or not window[0] < window[1]:
            raise PrivacyConfigError(
                f"dims={dims}, size={size}, slices={slices}, window={tuple(window)}: dims is 2 or 3, the others are "
                "positive, and the window goes from low to high."
            )
        self.root, self.foreground, self.dims, self.size, self.slices = root, foreground or [[1, 2]], dims, size, slices
        self.window, self.n_val, self.n_test, self.seed = window, n_val, n_test, seed
        self.num_classes = len(self.foreground) + 1

    def prepare_data(self) -> None:
        """Look whether all files are there, before anything is read."""
        read_task(self.root)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Images, masks and owners of each part, read from the files."""
        task = read_task(self.root)
        if unknown := sorted({value for values in self.foreground for value in values} - set(task.labels)):
            raise PrivacyConfigError(
                f"foreground={self.foreground} names the labels {unknown}; {task.name} has {dict(task.labels)}."
            )
        n = len(task.cases)
        if self.n_val + self.n_test >= n or min(self.n_val, self.n_test) < 0:
            raise PrivacyConfigError(
                f"n_val={self.n_val} and n_test={self.n_test} leave none of {n} patients to train on, or are below 0. Choose "
                "fewer, and not below 0."
            )
        order = np.random.default_rng(self.seed).permutation(n)
        ends = {"test": self.n_test, "val": self.n_test + self.n_val, "train": n}
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for part, end in ends.items():
            if end > start:
                found |= self._part(task, part, np.sort(order[start:end]))
            start = end
        return found

    def _part(self, task: DecathlonTask, part: str, patients: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        images, masks, owners, empty = [], [], [], []
        for patient in progress(patients, f"{task.name}, {part}", len(patients)):
            image_file, mask_file = task.cases[patient]
            pixels, marks = read_volume(image_file, mask_file, list(task.labels))
            classes = np.zeros(marks.shape, np.uint8)
            for k, values in enumerate(self.foreground, start=1):
                classes[np.isin(marks, values)] = k
            if not classes.any():
                empty.append(mask_file)
            image, mask = self._resampled(hounsfield_window(pixels, *self.window), classes)
            images.append(image)
            masks.append(mask)
            owners.append(np.full(len(image), patient, np.int64))
        if empty:
            self._say_empty(part, empty, len(patients))
        owner = np.concatenate(owners)
        arrays: dict[str, NDArray[Any]] = {
            "images": np.concatenate(images),
            "masks": np.concatenate(masks),
            "volumes": owner,
            "unit_id": owner,
        }
        return {f"{part}/{name}": array for name, array in arrays.items()}

    def _say_empty(self, part: str, empty: list[Path], n: int) -> None:
        what = f"{len(empty)} of {n} masks of the part {part} hold none of foreground={self.foreground}, such as {empty[0]}"
        if part == "train" and len(empty) == n:
            raise ValueError(f"{what}: there is nothing to learn. Name the values of the organ in foreground=.")
        rank_zero_warn(
            f"{what}. That is right for patients without the organ or lesion, and found empty it counts as a Dice of 1; if "
            "they have it, correct the masks or foreground=.",
            category=PrivacyWarning,
        )

    def _resampled(
        self, image: NDArray[np.float32], mask: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Samples of one patient: ``(n, 1, size, ...)`` and ``(n, size, ...)``."""
        if self.dims == 2 and self.slices is not None and self.slices < len(image):
            chosen = np.linspace(0, len(image) - 1, self.slices).round().astype(int)
            image, mask = image[chosen], mask[chosen]
        x, y = torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(mask)).float()
        x, y = (x[:, None], y[:, None]) if self.dims == 2 else (x[None, None], y[None, None])
        to = (self.size,) * self.dims
        x = F.interpolate(x, to, mode="bilinear" if self.dims == 2 else "trilinear", align_corners=False)
        return x.numpy(), F.interpolate(y, to, mode="nearest")[:, 0].long().numpy()

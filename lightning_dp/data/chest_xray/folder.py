"""Real chest X-rays: a folder of pictures, and a table of who they are and what they show."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule, ArrayDataset
from lightning_dp.data.card import DataCard
from lightning_dp.data.chest_xray.tables import ATTRIBUTES, age_bin
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("ChestXRayFolderDataModule", "FolderTable", "read_folder_table")

NEEDS = "reading pictures of chest X-rays"
#: What a column may be called; the second name is that of NIH ChestX-ray14.
NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "Image Index"),
    "patient": ("patient", "Patient ID"),
    "sex": ("sex", "Patient Gender"),
    "age": ("age", "Patient Age"),
}
LISTED = "Finding Labels"  # of the NIH table: all findings in one column, joined by "|"
#: What it lists, and "No Finding".
LISTED_NAMES = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration",
    "Mass", "No Finding", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
SUFFIXES = (".png", ".jpg", ".jpeg")
SEXES = {"f": 0, "female": 0, "w": 0, "m": 1, "male": 1}


@dataclass(frozen=True)
class FolderTable:
    """The table of a folder: paths of the pictures, patient ids as text, levels (sex, age group) and labels, row by row."""

    paths: list[Path]
    patients: list[str]
    levels: NDArray[np.int64]
    labels: NDArray[np.float32]


def read_folder_table(root: Path, table: str, findings: Sequence[str]) -> FolderTable:
    """Read and check the table, see `ChestXRayFolderDataModule`.

    Raises:
        FileNotFoundError: the table or a picture is missing.
        PrivacyConfigError: a column is missing, or a value cannot be right; the message names the row. So is a picture that is
            listed twice: it would be two privacy units, and perhaps be trained and tested on.
    """
    path = root / table
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give table= the name of the csv file in root= ({root}).")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        header = list(reader.fieldnames or ())
    columns = {name: next((known for known in names if known in header), None) for name, names in NAMES.items()}
    missing = [f"{name} (or {NAMES[name][1]!r})" for name, found in columns.items() if found is None]
    if LISTED not in header:
        missing += [name for name in findings if name not in header]
    if missing or not rows:
        what = f"has no column {', '.join(missing)}" if missing else "has no rows"
        raise PrivacyConfigError(f"{path} {what}. Its columns are {header}; findings= names the columns of labels.")
    if LISTED in header:
        _check_listed(findings, rows, path)
    pictures = _Pictures(root)
    paths, patients, levels, labels = [], [], [], []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        value = {name: (row[column or ""] or "").strip() for name, column in columns.items()}
        picture = pictures.take(value["image"], where)
        if not value["patient"]:
            raise PrivacyConfigError(f"{where}: the patient is missing, so nobody knows whom this picture belongs to.")
        if value["sex"].lower() not in SEXES:
            raise PrivacyConfigError(f"{where}: sex {value['sex']!r} is none of {sorted(SEXES)}. Leave the row out.")
        paths.append(picture)
        patients.append(value["patient"])
        levels.append([SEXES[value["sex"].lower()], int(age_bin(np.array(_age(value["age"], where))))])
        labels.append(_labels(row, findings, where))
    return FolderTable(paths, patients, np.array(levels, np.int64), np.array(labels, np.float32))


class _Pictures:
    """The pictures of a folder and what is below it, each to be taken once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = {}
        for file in sorted(root.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                self.by_name.setdefault(file.name, []).append(file)
        self.taken: dict[Path, str] = {}

    def take(self, text: str, where: str) -> Path:
        """The picture of a path from the root, or of a bare name where only one picture has it."""
        there = self.by_name.get(Path(text).name, [])
        found = [self.root / text] if self.root / text in there else there
        if not found:
            raise FileNotFoundError(
                f"{where}: there is no picture {text!r} in {self.root} or below ({', '.join(SUFFIXES)} are read)."
            )
        if len(found) > 1:
            raise PrivacyConfigError(
                f"{where}: {len(found)} pictures are called {Path(text).name!r}, such as {found[0]} and {found[1]}: give the "
                f"path from {self.root}."
            )
        if before := self.taken.get(found[0]):
            raise PrivacyConfigError(
                f"{where}: {text!r} is already in {before}. Listed twice it would count twice, and as two people if "
                "the patients differ: leave one of the rows out."
            )
        self.taken[found[0]] = f"line {where.rsplit(' ', 1)[-1]}"
        return found[0]


def _check_listed(findings: Sequence[str], rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """A misspelt finding would be a label of zeros alone."""
    known = {name.lower() for name in LISTED_NAMES}
    known |= {name.strip().lower() for row in rows for name in row[LISTED].split("|")}
    if unknown := [name for name in findings if name.lower() not in known]:
        raise PrivacyConfigError(
            f"findings={list(findings)}: {path} knows no {', '.join(unknown)}. Choose from {', '.join(LISTED_NAMES)}."
        )


def _age(text: str, where: str) -> int:
    try:
        age = float(text.rstrip("Yy"))  # "058Y" is how DICOM writes it
    except ValueError:
        age = -1.0
    if not 0 <= age <= 130:
        raise PrivacyConfigError(f"{where}: age {text!r} is no number of years. Leave the row out.")
    return int(age)


def _labels(row: Mapping[str, str], findings: Sequence[str], where: str) -> list[float]:
    if LISTED in row:
        there = {one.strip().lower() for one in row[LISTED].split("|")}
        return [float(name.lower() in there) for name in findings]
    values = []
    for name in findings:
        if row[name] not in ("0", "1", "0.0", "1.0"):
            raise PrivacyConfigError(f"{where}: {name} is {row[name]!r}; a label is 0 or 1. Decide unclear ones first.")
        values.append(float(row[name]))
    return values


class PictureDataset(ArrayDataset):
    """Pictures that are read when they are asked for, and their arrays."""

    def __init__(
        self,
        paths: Sequence[Path],
        columns: list[NDArray[Any]],
        unit_id: NDArray[np.int64] | None,
        size: int,
        channels: int,
    ) -> None:
        super().__init__(columns, unit_id)
        self.paths, self.size, self.channels = paths, size, channels

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        number, *rest = super().__getitem__(index)
        return (_read(self.paths[int(number)], self.size).expand(self.channels, -1, -1), *rest)


def _read(path: Path, size: int) -> Tensor:
    """A picture as float32 (1, size, size) in [0, 1]."""
    image = require("PIL.Image", "data", NEEDS)
    try:
        with image.open(path) as opened:
            deep = opened.mode.startswith("I")  # 16 bits: converting those to 8 would cut them off
            grey = opened.convert("F" if deep else "L").convert("F")
            small = grey.resize((size, size), image.Resampling.BILINEAR, reducing_gap=None)
    except OSError as error:
        raise PrivacyConfigError(
            f"{path} cannot be read as a picture ({error}). Replace it, or leave its row out."
        ) from error
    return torch.from_numpy(np.array(small, np.float32) / (65535.0 if deep else 255.0))[None].clamp(0.0, 1.0)


class ChestXRayFolderDataModule(ArrayDataModule):
    """Real chest X-rays: PNG or JPEG files in ``root`` or below, and a csv file that says whose they are and what they show.

    The csv file has the columns ``image`` (a file name, or a path from ``root``), ``patient``, ``sex`` (F or M), ``age``
    (years), and one column of 0 and 1 for each of ``findings``; or the columns of NIH ChestX-ray14 as downloaded
    (``Image Index``, ``Finding Labels``, ...). Pictures are read when they are used, made grey, scaled
    to [0, 1] and to ``image_size``. No patient is in two parts.

    **The privacy unit**: with ``DPStrategy(unit="unit_id")`` one patient, as it should be; otherwise one picture.

    Args:
        root: folder.
        findings: names of the findings, the labels in order.
        table: name of the csv file in ``root``.
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        image_size: pixels a side.
        channels: 1, or 3 for networks that want colour: the picture is repeated.
        val_share: share of patients for validation; 0 for none.
        test_share: share of patients for testing.
        seed: of the split.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Shape:
        Batches ``(images, labels, levels)``: float32 ``(N, channels, image_size, image_size)``, float32 ``(N, findings)``,
        int64 ``(N, 2)``: sex and age group as numbered by `attributes`.

    Raises:
        FileNotFoundError: in ``prepare_data``, if the table or a picture is missing.
        PrivacyConfigError: for columns or values that cannot be right, or too few patients to split.
        ModuleNotFoundError: if pillow is not installed.
    """

    columns = ("inputs", "labels", "levels")
    attributes: ClassVar[dict[str, list[str]]] = ATTRIBUTES
    card = DataCard(
        name="Chest X-rays from a folder of yours",
        licence="that of your data",
        n=0,  # not known before the folder is read
        real=True,
        unit="one patient with all their pictures (with unit='unit_id'; otherwise one picture)",
        source="the folder given as root=",
    )

    def __init__(
        self,
        root: str | Path,
        findings: Sequence[str],
        table: str = "labels.csv",
        batch_size: int = 128,
        image_size: int = 512,
        channels: int = 3,
        val_share: float = 0.1,
        test_share: float = 0.2,
        seed: int = 0,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=val_share > 0)
        if not findings or channels not in (1, 3) or not (0 <= val_share < 1 and 0 < test_share < 1):
            raise PrivacyConfigError(
                f"findings={list(findings)} must name something, channels={channels} be 1 or 3, and the shares val_share="
                f"{val_share} and test_share={test_share} lie in [0, 1) and (0, 1)."
            )
        self.root, self.findings, self.table = Path(root), tuple(findings), table
        self.image_size, self.channels = image_size, channels
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self._read: FolderTable | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return self.channels, self.image_size, self.image_size

    @override
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Rows of the table, split by patient; ``inputs`` are numbers of pictures."""
        if self._read is None:
            require("PIL.Image", "data", NEEDS)  # now, and not at the first picture
            self._read = read_folder_table(self.root, self.table, self.findings)
        people, owner = np.unique(self._read.patients, return_inverse=True)
        order = np.random.default_rng(self.seed).permutation(len(people))
        held = [round(len(people) * self.val_share), max(1, round(len(people) * self.test_share))]
        if self.val_share:
            held[0] = max(1, held[0])
        if sum(held) >= len(people):
            raise PrivacyConfigError(
                f"{len(people)} patients are too few for val_share={self.val_share} and test_share={self.test_share}: each "
                "part needs one of its own. Give more patients, or val_share=0."
            )
        parts = dict(zip(("val", "test", "train"), np.split(order, np.cumsum(held)), strict=True))
        found: dict[str, NDArray[Any]] = {}
        for part, members in parts.items():
            rows = np.flatnonzero(np.isin(owner, members))
            if len(rows):
                found[f"{part}/inputs"], found[f"{part}/labels"] = rows, self._read.labels[rows]
                found[f"{part}/levels"], found[f"{part}/unit_id"] = (
                    self._read.levels[rows],
                    owner[rows].astype(np.int64),
                )
        return found

    @override
    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> ArrayDataset:
        """The pictures of one part."""
        assert self._read is not None
        return PictureDataset(self._read.paths, columns, unit_id, self.image_size, self.channels)

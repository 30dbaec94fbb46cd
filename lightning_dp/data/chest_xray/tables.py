"""What is real in the simulated chest X-rays: who the patients are and what they have, and the shapes of lungs."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import folder_of, require

__all__ = (
    "ATTRIBUTES",
    "FINDINGS",
    "Visits",
    "age_bin",
    "choose_patients",
    "finding_visits",
    "read_lung_masks",
    "read_nih_table",
)

#: Findings that are drawn, in the order of the labels, with the names that the NIH table has for them.
FINDINGS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly",),
    "effusion": ("Effusion",),
    "infiltrate": ("Infiltration", "Pneumonia"),
}
AGE_EDGES = (30, 60, 70, 80)
#: Groups of patients: the first age bin is that of the code of arXiv 2302.01622, the others are from memory.
ATTRIBUTES: dict[str, list[str]] = {
    "sex": ["female", "male"],
    "age": ["<30", "30-59", "60-69", "70-79", ">=80"],
}
NEEDS = "the chest-X-ray simulator (real lung masks, and who has which finding)"
MASK_SIZE = 64


def age_bin(age: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the age group of `ATTRIBUTES`, for ages in years of any shape."""
    return np.digitize(age, AGE_EDGES).astype(np.int64)


@dataclass(frozen=True)
class Visits:
    """One row for each picture that was taken.

    Attributes:
        patient: whose it is, int64 ``(n,)``.
        sex: 0 female, 1 male, int64 ``(n,)``.
        age: years, int64 ``(n,)``.
        labels: 0 or 1 for each of `FINDINGS`, float32 ``(n, findings)``.
    """

    patient: NDArray[np.int64]
    sex: NDArray[np.int64]
    age: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.patient)

    @property
    def levels(self) -> NDArray[np.int64]:
        """Numbers of the groups by sex and by age, ``(n, 2)``: what `lightning_dp.Groups` of `ATTRIBUTES` takes."""
        return np.stack([self.sex, age_bin(self.age)], 1)

    def rows(self, index: NDArray[np.int64]) -> Visits:
        """Some of the rows."""
        return Visits(self.patient[index], self.sex[index], self.age[index], self.labels[index])


def finding_visits(table: Visits) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which visits have a finding, ``(n,)``, and which patients have one at some visit, in the order of their numbers."""
    people, of_row = np.unique(table.patient, return_inverse=True)
    found: NDArray[np.bool_] = np.asarray(table.labels.any(1), dtype=np.bool_)
    ill = np.zeros(len(people), dtype=bool)
    np.logical_or.at(ill, of_row, found)
    return found, ill


def choose_patients(
    table: Visits, n: int, max_visits: int, rng: np.random.Generator, with_finding: float | None = 0.5
) -> Visits:
    """Draws patients without replacement, and up to ``max_visits`` visits of each.

    Args:
        table: all visits.
        n: number of patients.
        max_visits: the most visits of a patient.
        rng: source of randomness.
        with_finding: share of patients who have a finding at some visit, whose visits with a finding then come first.
            ``None`` draws patients, and visits, as they come: most have no finding.

    Returns:
        The visits, by patient; patients keep their numbers.

    Raises:
        PrivacyConfigError: the table has too few patients of a kind.
    """
    people, of_row = np.unique(table.patient, return_inverse=True)
    found, ill = finding_visits(table)
    pools = [(np.flatnonzero(ill), 0), (np.flatnonzero(~ill), 0)]
    if with_finding is None:
        pools = [(np.arange(len(people)), n)]
    else:
        pools = [(pools[0][0], round(n * with_finding)), (pools[1][0], n - round(n * with_finding))]
    for pool, count in pools:
        if count > len(pool):
            raise PrivacyConfigError(f"{count} patients of {len(pool)} such in the table: ask for fewer patients.")
    chosen = np.zeros(len(people), dtype=bool)
    for pool, count in pools:
        chosen[rng.permutation(pool)[:count]] = True
    later = 0.0 if with_finding is None else (~found).astype(float)
    order = np.lexsort((rng.random(len(table)) + later, of_row))
    owner = of_row[order]
    start = np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1])
    rank = np.arange(len(order)) - np.repeat(start, np.diff(np.concatenate([start, [len(order)]])))
    return table.rows(order[(rank < max_visits) & chosen[owner]])


def read_nih_table(path: Path | None = None) -> Visits:
    """The table of NIH ChestX-ray14: 112,120 pictures of 30,805 patients. Only read, never stored.

    Args:
        path: ``Data_Entry_2017_v2020.csv``, plain or ``.gz``; ``None``: that of the installed torchxrayvision, which is not
            imported.

    Raises:
        ModuleNotFoundError: torchxrayvision is not installed, and no path is given.
    """
    if path is None:
        path = folder_of("torchxrayvision", "data", NEEDS) / "data" / "Data_Entry_2017_v2020.csv.gz"
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    findings = [set(row["Finding Labels"].split("|")) for row in rows]
    labels = [[bool(found.intersection(names)) for names in FINDINGS.values()] for found in findings]
    return Visits(
        np.array([int(row["Patient ID"]) for row in rows]),
        np.array([int(row["Patient Gender"] == "M") for row in rows]),
        np.array([int(row["Patient Age"]) for row in rows]),
        np.array(labels, dtype=np.float32).reshape(-1, len(FINDINGS)),
    )


def read_lung_masks(path: Path | None = None) -> NDArray[np.bool_]:
    """Real lung masks that show exactly two lungs at 64 x 64 pixels: ``(401, 64, 64)`` of 517 files.

    Args:
        path: ``semantic_masks_v7labs_lungs.zip``; ``None``: that of the installed torchxrayvision, which is not imported.

    Raises:
        ModuleNotFoundError: torchxrayvision is not installed and no path is given, or pillow is not.
    """
    image = require("PIL.Image", "data", NEEDS)
    if path is None:
        path = folder_of("torchxrayvision", "data", NEEDS) / "data" / "semantic_masks_v7labs_lungs.zip"
    masks = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if not name.endswith("/")):
            drawn = np.asarray(image.open(io.BytesIO(archive.read(name))).convert("L")) > 0
            small = image.fromarray(drawn.astype(np.uint8)).resize((MASK_SIZE, MASK_SIZE), image.Resampling.NEAREST)
            mask = np.asarray(small) > 0
            if label(mask)[1] == 2:
                masks.append(mask)
    return np.stack(masks)

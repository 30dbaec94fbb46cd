"""ACTG175: a clinical trial with age, sex and race, small enough for many private trainings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.splits import stratified_split
from lightning_dp.optional import folder_of

__all__ = ("ACTG175DataModule", "find_actg175")

#: Inputs known at baseline, with a centre and a scale. Round numbers, not statistics of the data: those would be private.
INPUTS: dict[str, tuple[float, float]] = {
    "age": (35, 10), "wtkg": (75, 15), "karnof": (95, 5), "preanti": (365, 365), "cd40": (350, 150), "cd80": (1000, 500),
    "hemo": (0, 1), "homo": (0, 1), "drugs": (0, 1), "oprior": (0, 1), "z30": (0, 1), "race": (0, 1), "gender": (0, 1),
    "str2": (0, 1), "symptom": (0, 1), "treat": (0, 1),
}  # fmt: skip
LARGEST = 3.0  # of a scaled input


class ACTG175DataModule(ArrayDataModule):
    """2,139 people with HIV in a trial of four treatments; was there an event (CD4 down by half, AIDS or death)?

    Inputs are the sixteen numbers known when the trial began, age, sex and race among them. The file is that of the
    ``lifelines`` package; the package itself is not imported.

    Args:
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        test_size: number of test samples, stratified by the outcome.
        seed: seed of the split.
        root: folder of ``ACTG175.csv``; None: that of the installed lifelines.

    Shape:
        Batches ``(inputs, labels, levels)``: float32 ``(N, 16)``, int64 ``(N,)``, int64 ``(N, 3)``: sex, race and age as
        numbered by `attributes`.

    Raises:
        ModuleNotFoundError: in ``prepare_data``, if lifelines is not installed and no root is given.
        FileNotFoundError: in ``prepare_data``, if the file is not there.
        ValueError: in ``prepare_data``, if it is another table.
    """

    columns = ("inputs", "labels", "levels")
    num_classes = 2
    #: The attributes of `levels` with their levels in order: what `lightning_dp.Groups` takes.
    attributes: ClassVar[dict[str, list[str]]] = {
        "sex": ["female", "male"],
        "race": ["white", "non-white"],
        "age": ["<30", "30-39", ">=40"],
    }
    card = DataCard(
        name="ACTG 175 (AIDS Clinical Trials Group study 175)",
        licence="MIT, as part of lifelines",
        n=2139,
        real=True,
        unit="one person",
        source="Hammer et al., N Engl J Med 335, 1996; the file of the lifelines package",
    )

    def __init__(
        self, batch_size: int = 128, test_size: int = 639, seed: int = 0, root: str | Path | None = None
    ) -> None:
        super().__init__(batch_size, batch_size, has_validation=False)
        self.test_size, self.seed, self.root = test_size, seed, root

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        inputs, labels, levels = read_actg175(find_actg175(self.root))
        every: dict[str, NDArray[Any]] = {"inputs": inputs, "labels": labels, "levels": levels}
        train, test = stratified_split(labels, self.test_size, self.seed, "test_size=")
        parts = {"train": train, "test": test}
        return {f"{part}/{name}": every[name][index] for part, index in parts.items() if len(index) for name in every}


def find_actg175(root: str | Path | None = None) -> Path:
    """The path of the file.

    Raises:
        ModuleNotFoundError: lifelines is not installed, and no root was given.
        FileNotFoundError: it is not there.
    """
    if root is not None:
        folder = Path(root)
    else:
        folder = folder_of("lifelines", "data", "ACTG175 without root= (the folder of ACTG175.csv)") / "datasets"
    path = folder / "ACTG175.csv"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give root=, the folder of ACTG175.csv.")
    return path


def read_actg175(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Scaled inputs (n, 16), labels (n,) and levels (n, 3).

    Raises:
        ValueError: a column, or a number in one, is missing; the message names it.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if missing := sorted({*INPUTS, "cens"} - set(rows[0] if rows else ())):
        raise ValueError(
            f"{path} has no column {', '.join(missing)}, or no rows: it is not the table of ACTG 175, which the package "
            "lifelines brings (pip install 'lightning-dp[data]', and no root=)."
        )

    def column(name: str) -> NDArray[np.float64]:
        try:
            return np.array([float(row[name]) for row in rows])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds a value of {name} that is no number ({error}): leave that row out."
            ) from error

    scaled = [(column(name) - centre) / scale for name, (centre, scale) in INPUTS.items()]
    inputs = np.clip(np.stack(scaled, 1), -LARGEST, LARGEST).astype(np.float32)
    age = np.digitize(column("age"), [30, 40])
    levels = np.stack([column("gender"), column("race"), age], 1).astype(np.int64)
    return inputs, column("cens").astype(np.int64), levels

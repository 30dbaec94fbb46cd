"""ACTG175: a clinical trial with age, sex and race, small enough for many private trainings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

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


class ACTG175DataModule(LightningDataModule):
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
        ModuleNotFoundError: in ``setup``, if lifelines is not installed and no root is given.
        FileNotFoundError: in ``setup``, if the file is not there.
    """

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
        super().__init__()
        self.batch_size, self.test_size, self.seed, self.root = batch_size, test_size, seed, root
        self._sets: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load and split once; ``stage`` does not matter for a set this small."""
        if self._sets:
            return
        inputs, labels, levels = read_actg175(find_actg175(self.root))
        train, test = stratified_split(labels, self.test_size, self.seed)
        for name, index in (("train", train), ("test", test)):
            columns = (inputs[index], labels[index], levels[index])
            self._sets[name] = TensorDataset(*(torch.from_numpy(column) for column in columns))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled training batches."""
        return DataLoader(self._sets["train"], self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Test batches."""
        return DataLoader(self._sets["test"], self.batch_size)


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
    """Scaled inputs (n, 16), labels (n,) and levels (n, 3)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(row[name]) for row in rows])

    scaled = [(column(name) - centre) / scale for name, (centre, scale) in INPUTS.items()]
    inputs = np.clip(np.stack(scaled, 1), -LARGEST, LARGEST).astype(np.float32)
    age = np.digitize(column("age"), [30, 40])
    levels = np.stack([column("gender"), column("race"), age], 1).astype(np.int64)
    return inputs, column("cens").astype(np.int64), levels

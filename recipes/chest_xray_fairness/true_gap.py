"""What a model really does to a group: its gap over many fresh patients, and how often the monitor's interval holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_dp import Groups
from lightning_dp.data import ChestXRayDataModule
from lightning_dp.metrics import FairnessResult
from lightning_dp.metrics.estimate import Estimate
from lightning_dp.metrics.functional import Outcomes, fairness

GROUPS = Groups(ChestXRayDataModule.attributes)
FINDINGS = ChestXRayDataModule.findings
GROUP = "female"


@dataclass(frozen=True)
class Truth:
    """What a model does to females in the population: their accuracy minus that of males, over many fresh patients.

    ``without`` is the same model's gap on the same patients with nothing planted, so that ``gap - without`` is the planted
    part. ``held`` of ``sets`` further test sets have a monitor's interval that holds ``gap``; ``error`` is its own standard
    error.
    """

    gap: float
    error: float
    without: float
    held: int
    sets: int


def parity(found: FairnessResult) -> Estimate:
    """The accuracy parity difference of females, with its interval."""
    return found.by("sex").row(GROUP).accuracy_parity_difference


def probabilities(model: nn.Module, pictures: NDArray[Any]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).double().sigmoid() for part in torch.from_numpy(pictures).split(2000)])


class Population:
    """One model over many fresh patients, a chunk at a time."""

    def __init__(self) -> None:
        self.held: list[Estimate] = []
        self.sums = np.zeros((2, 2, 3))  # planted or not; female or male; n, accuracy, its square

    def add(self, model: nn.Module, chunks: Sequence[dict[str, NDArray[Any]]], n_test: int) -> None:
        """Patients as the model's test set has them, and the same with nothing planted; test sets are made of the first."""
        for place, chunk in enumerate(chunks):
            found = probabilities(model, chunk["inputs"])
            labels, levels = torch.from_numpy(chunk["labels"]).long(), torch.from_numpy(chunk["levels"])
            right = ((found > 0.5) == (labels == 1)).double().mean(1).numpy()
            for sex in (0, 1):
                of_sex = right[chunk["levels"][:, 0] == sex]
                self.sums[place, sex] += len(of_sex), of_sex.sum(), (of_sex**2).sum()
            if place == 0:
                parts = (one.split(n_test) for one in (found, labels, levels))
                self.held += [
                    parity(fairness(*part, GROUPS, Outcomes.of("multilabel", names=FINDINGS)))
                    for part in zip(*parts, strict=True)
                ]

    def truth(self) -> Truth:
        n, mean = self.sums[..., 0], self.sums[..., 1] / self.sums[..., 0]
        variance = self.sums[..., 2] / n - mean**2
        gaps, errors = mean[:, 0] - mean[:, 1], np.sqrt((variance / n).sum(1))
        held = sum(one.low <= gaps[0] <= one.high for one in self.held)
        return Truth(float(gaps[0]), float(errors[0]), float(gaps[1]), held, len(self.held))

"""All monitors on one process or on two gloo ranks, private and not, and what each rank then holds.

Arguments: folder, number of processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_dp import (
    CalibrationMonitor,
    DPStrategy,
    FairnessMonitor,
    Members,
    MultiplicityMonitor,
    ReconstructionRiskMonitor,
    RiskReport,
)
from tests.callbacks.helpers import CLASSES, GROUPS, Grouped, loader, network, samples, trainer


class Uneven(Dataset[Any]):
    """So few samples that a rank of two has one less; `n` = 1 leaves it none of its own."""

    def __init__(self, n: int) -> None:
        self.columns: tuple[Tensor, ...] = samples(n)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self.columns)


def run(devices: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    rank = 0
    for name, n, private in (("ragged", 53, True), ("one batch more", 17, False), ("one sample", 1, False)):
        plain = "auto" if devices == 1 else DDPStrategy(process_group_backend="gloo")
        plugin = DPStrategy(noise_multiplier=1.0) if private else plain
        members = Members([Grouped(network(seed)).state_dict() for seed in (10, 11, 12)], (None,) * 3, "trained")
        monitors = (
            CalibrationMonitor("multiclass", CLASSES, groups=GROUPS, log=["ece"]),
            FairnessMonitor(GROUPS, "multiclass", CLASSES, n_boot=50, log=["accuracy"]),
            MultiplicityMonitor(members, "multiclass", CLASSES, groups=GROUPS, stages=["val"], log=["ambiguity"]),
        )
        run = trainer(*monitors, strategy=plugin, devices=devices)
        run.validate(Grouped(), DataLoader(Uneven(n), batch_size=8), verbose=False)
        logged = {key: float(value) for key, value in run.callback_metrics.items()}
        found[name] = {
            "results": [monitor.result.to_dict() for monitor in monitors],
            "logged": {key: value if value == value else None for key, value in logged.items()},
        }
        rank = run.global_rank
    # A fit, in which the two parts of the run take turns.
    watching = CalibrationMonitor("multiclass", CLASSES, groups=GROUPS)
    fitted = trainer(
        watching, strategy=DPStrategy(noise_multiplier=0, seed=3, clipping="flat"), devices=devices, max_epochs=2
    )
    fitted.fit(Grouped(), loader(), loader(seed=5))
    found["after a fit"] = watching.result.to_dict()
    return found, rank


def report(folder: Path, devices: int) -> dict[str, Any]:
    """A private fit and a test that are reported on: what this rank holds of it."""
    risk = ReconstructionRiskMonitor()
    fairness = FairnessMonitor(GROUPS, "multiclass", CLASSES, n_boot=50, stages=["test"])
    written = RiskReport(folder / f"report-{devices}", name="Grouped")
    reported = trainer(
        risk, fairness, written, strategy=DPStrategy(noise_multiplier=1.0), devices=devices, max_epochs=2
    )
    module = Grouped()
    reported.fit(module, loader())
    reported.test(module, loader(seed=5), verbose=False)
    assert risk.corridor is not None
    return {
        "rows": [[row.name, row.probability] for row in risk.corridor.rows()],
        "logged": float(reported.callback_metrics["test/worst_group_accuracy"]),
        "writes": written.document is not None,
    }


def main(folder: Path, devices: int) -> None:
    found, rank = run(devices)
    found["report"] = report(folder, devices)
    (folder / f"{devices}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if (
        torch.distributed.is_initialized()
    ):  # left to the interpreter's end, gloo's threads now and then abort the process
        torch.distributed.destroy_process_group()

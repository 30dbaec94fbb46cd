"""Trains Fashion-MNIST without privacy and with it, and writes one report that shows the two side by side.

    python recipes/risk_report/run.py                      # report/report.html, report/report.json, report/model_card.md
    python recipes/risk_report/run.py --eps 8 --folder report_eps8

The report of the baseline is in the sub-folder `baseline`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import Strategy

from lightning_dp import CalibrationMonitor, DPStrategy, Groups, Predictions, ReconstructionRiskMonitor, RiskReport
from lightning_dp.data import FashionMNISTDataModule
from lightning_dp.models import GroupNormMLP
from lightning_dp.tasks import ClassificationTask

PIXELS = 28 * 28
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
KINDS = Groups({"kind": ["clothes", "shoes", "bags"]})
"""Stand-ins for groups of people: they show how a report breaks results down, and nothing about fairness."""
KIND_OF_CLASS = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 2, 1])


def train(
    strategy: Strategy | str, folder: Path, lr: float, steps: int, baseline: Path | None = None, root: str | None = None
) -> RiskReport:
    """One run with its report."""
    seed_everything(0)  # initial weights; the privacy noise has no seed
    task = ClassificationTask(GroupNormMLP(in_features=PIXELS, hidden=128), lr=lr)

    def predictions(outputs: Any, batch: Any) -> Predictions:
        images, labels = batch
        return Predictions(labels, logits=task(images), groups=KIND_OF_CLASS.to(labels.device)[labels])

    calibration = CalibrationMonitor(
        "multiclass", len(CLASSES), CLASSES, KINDS, stages=("test",), extract=predictions, log=()
    )
    report = RiskReport(folder, baseline=baseline, name="Fashion-MNIST classifier")
    # An image has 784 numbers in [0, 1]; the smallest norm among these published images is 2.15. For private data take a bound
    # that is known beforehand: the smallest norm in the data set is a number that eps does not cover.
    monitor = ReconstructionRiskMonitor(dimension=PIXELS, data_norm=2.0, data_range=1.0)
    trainer = Trainer(
        strategy=strategy, callbacks=[monitor, calibration, report], max_steps=steps, accelerator="cpu", devices=1,
        logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    data = FashionMNISTDataModule(root=root, batch_size=2048)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    return report


def main(arguments: list[str] | None = None) -> RiskReport:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("report"))
    parser.add_argument("--root", default=None, help="folder of the data set, if not Debian's")
    chosen = parser.parse_args(arguments)
    baseline = chosen.folder / "baseline"
    train("auto", baseline, 0.1, chosen.steps, root=chosen.root)
    private = DPStrategy(eps=chosen.eps, delta=1e-5, max_grad_norm=0.1, physical_batch_size=512)
    return train(private, chosen.folder, 8.0, chosen.steps, baseline, chosen.root)


if __name__ == "__main__":
    main()

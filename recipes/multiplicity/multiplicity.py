"""Which predictions are arbitrary, and what does an ensemble that may abstain make of it? Digits, private and not.

    python recipes/multiplicity/multiplicity.py

Trains a pool of models that differ in nothing but initial weights, order and noise, parts it into disjoint ensembles of
each size, and counts on which samples these ensembles contradict each other though none of them abstains.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lightning_dp import AbstainingEnsemble, DPStrategy, Members, MultiplicityMonitor
from lightning_dp.data import DigitsDataModule
from lightning_dp.metrics import Abstention, ensemble_ambiguity
from lightning_dp.models import TanhMLP
from lightning_dp.tasks import ClassificationTask

SIZES = (1, 2, 3, 4, 6)
RULE = Abstention.unanimity()


@dataclass(frozen=True)
class Row:
    """Ensembles of one size: their budget, and what they do on the test set."""

    eps: float
    size: int
    ensembles: int
    ensemble_eps: float
    ambiguity: float
    coverage: float
    selective_accuracy: float
    member_ambiguity: float


def network() -> ClassificationTask:
    return ClassificationTask(TanhMLP([64, 32, 10]), lr=2.0, momentum=0.9)


def pool(eps: float, count: int, seed: int, epochs: int) -> Members:
    """Members trained on the same digits, each at its own eps; inf: without privacy."""

    def member(index: int) -> tuple[Trainer, LightningModule, Any]:
        seed_everything(1000 * seed + index, verbose=False)
        private = DPStrategy(eps=eps, max_grad_norm=0.1) if math.isfinite(eps) else "auto"
        task = network() if math.isfinite(eps) else ClassificationTask(TanhMLP([64, 32, 10]), lr=0.1, momentum=0.9)
        return quiet_trainer(strategy=private, max_epochs=epochs), task, DigitsDataModule(batch_size=256, seed=seed)

    return Members.trained(member, count)


def quiet_trainer(**arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return Trainer(accelerator="cpu", devices=1, **quiet, **arguments)


def measure(members: Members, eps: float, sizes: Sequence[int], seed: int) -> list[Row]:
    """What ensembles of each size do on the test digits."""
    data = DigitsDataModule(seed=seed)
    data.setup()
    images, labels = next(iter(torch.utils.data.DataLoader(data.test_dataloader().dataset, 10**6)))
    module = network().eval()
    rows = []
    for size in (size for size in sizes if size <= len(members)):
        parts = [
            Members([members.states[k] for k in places], tuple(members.spendings[k] for k in places), "trained")
            for places in torch.arange(len(members) // size * size).split(size)
        ]
        answers = torch.stack(
            [AbstainingEnsemble(module, part, RULE, num_classes=10)(images).classes for part in parts]
        )
        answered = answers >= 0
        right = (answers == labels) & answered
        monitor = MultiplicityMonitor(parts[0], "multiclass", 10, rules=(RULE,), log=())
        quiet_trainer(callbacks=[monitor]).test(module, data, verbose=False)
        rows.append(
            Row(
                eps,
                size,
                len(parts),
                parts[0].budget().eps,
                ensemble_ambiguity(answers).value if len(parts) > 1 else math.nan,
                float(answered.double().mean()),
                float(right.sum() / answered.sum()),
                monitor.result.overall.ambiguity.value,
            )
        )
    return rows


def main(
    eps_grid: Sequence[float] = (1.0, 3.0, math.inf),
    seeds: Sequence[int] = (0, 1, 2),
    count: int = 12,
    sizes: Sequence[int] = SIZES,
    epochs: int = 20,
) -> list[Row]:
    """All rows; prints the table of the README."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    print("member eps  size  ensembles  ensemble eps  contradicting  coverage        right of answers  members differ")
    for eps in eps_grid:
        found = [measure(pool(eps, count, seed, epochs), eps, sizes, seed) for seed in seeds]
        for of_size in zip(*found, strict=True):
            first = of_size[0]
            cells = [
                spread([getattr(row, name) for row in of_size])
                for name in ("ambiguity", "coverage", "selective_accuracy", "member_ambiguity")
            ]
            print(
                f"{eps:>10g}  {first.size:>4}  {first.ensembles:>9}  {first.ensemble_eps:>12.3f}  " + "  ".join(cells),
                flush=True,
            )
            rows += of_size
    print(", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting")))
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({deviation:.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0, 3.0, math.inf])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--members", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    main(given.eps, given.seeds, given.members, epochs=given.epochs)

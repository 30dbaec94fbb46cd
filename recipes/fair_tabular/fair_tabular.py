"""Does privacy cost one group more than another? A clinical trial over a grid of eps, beside training without privacy.

python recipes/fair_tabular/fair_tabular.py
python recipes/fair_tabular/fair_tabular.py --seeds 0 1 2 3 4 --eps 0.5 1 2 4 8 inf --figures figures
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
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from scipy.stats import pearsonr

from lightning_dp import CalibrationMonitor, DPStrategy, FairnessMonitor, Groups, Predictions
from lightning_dp.data import ACTG175DataModule
from lightning_dp.metrics import CalibrationResult, FairnessResult
from lightning_dp.models import TanhMLP
from lightning_dp.tasks import ClassificationTask

EPS = (0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
SEEDS = (0, 1, 2, 3, 4)
THRESHOLD = 0.25  # a quarter of such patients had an event: fixed beforehand, for the groups' decisions
GROUPS = Groups(ACTG175DataModule.attributes)
ATTRIBUTES = GROUPS.attribute_names


@dataclass(frozen=True)
class Run:
    """One training: what it spent and what the monitors found on the test set."""

    eps: float
    spent: float
    seed: int
    fairness: FairnessResult
    calibration: CalibrationResult

    @property
    def auroc(self) -> float:
        return self.fairness.overall.outcomes[0].auroc.value

    def parity(self, group: str, attribute: str) -> tuple[float, float]:
        """Accuracy parity difference and statistical parity difference of a group, signed."""
        row = self.fairness.by(attribute).row(group)
        return row.accuracy_parity_difference.value, row.outcomes[0].statistical_parity_difference.value


def of_two_logits(outputs: Any, batch: Any) -> Predictions:
    """The network has two logits; the event's log odds are their difference."""
    logits = outputs["logits"]
    return Predictions(outputs["target"], logits=logits[:, 1] - logits[:, 0], groups=outputs["groups"])


def train(eps: float, seed: int, epochs: int = 20) -> Run:
    """Trains and tests at one eps; inf: without privacy."""
    seed_everything(seed, verbose=False)  # initial weights and the split; the privacy noise has no seed
    data = ACTG175DataModule(batch_size=128, seed=seed)
    fairness = FairnessMonitor(GROUPS, threshold=THRESHOLD, n_boot=200, extract=of_two_logits, log=())
    calibration = CalibrationMonitor("binary", groups=GROUPS, n_bins=10, extract=of_two_logits, log=())
    private = DPStrategy(eps=eps, max_grad_norm=2.0) if math.isfinite(eps) else None
    trainer = Trainer(
        strategy="auto" if private is None else private,
        callbacks=[fairness, calibration],
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module = ClassificationTask(TanhMLP([16, 16, 2]), lr=0.1, momentum=0.9, num_classes=2)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    spent = math.inf if private is None else private.privacy_spent().eps
    return Run(eps, spent, seed, fairness.result, calibration.result)


def main(
    eps_grid: Sequence[float] = EPS, seeds: Sequence[int] = SEEDS, epochs: int = 20, figures: Path | None = None
) -> list[Run]:
    """All runs; prints the tables of the README."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs = [train(eps, seed, epochs) for eps in eps_grid for seed in seeds]
    print(f"{'eps':>5}  {'AUROC':>15}  {'ECE':>15}  {'accuracy gap (sex)':>20}  {'(race)':>15}  {'(age)':>15}")
    for eps in eps_grid:
        chosen = [run for run in runs if run.eps == eps]
        cells = [spread([run.auroc for run in chosen]), spread([run.calibration.overall.ece.value for run in chosen])]
        cells += [
            spread([run.fairness.by(attribute).gap("accuracy_difference").value for run in chosen])
            for attribute in ATTRIBUTES
        ]
        print(f"{eps:>5g}  {cells[0]:>15}  {cells[1]:>15}  {cells[2]:>20}  {cells[3]:>15}  {cells[4]:>15}")
    print("\nPearson's r between eps and parity over all private runs, and the parity without privacy (mean, sd):")
    private = [run for run in runs if math.isfinite(run.eps)]
    plain = [run for run in runs if not math.isfinite(run.eps)]
    for attribute, group in (("sex", "female"), ("race", "non-white"), ("age", "<30"), ("age", ">=40")):
        for place, name in enumerate(("accuracy parity difference", "statistical parity difference")):
            values = [run.parity(group, attribute)[place] for run in private]
            r = correlation([run.eps for run in private], values)
            n = statistics.median(run.fairness.by(attribute).row(group).n for run in runs)
            without = spread([run.parity(group, attribute)[place] for run in plain])
            print(f"  {name:<30} {group:<10} (n = {n:g}): r = {r}; without privacy {without}")
    print("\nECE by group (mean, sd):")
    for attribute in ATTRIBUTES:
        for group in ACTG175DataModule.attributes[attribute]:
            cells = [
                spread([run.calibration.by(attribute).row(group).ece.value for run in runs if run.eps == eps])
                for eps in eps_grid
            ]
            print(f"  {group:<10} " + "  ".join(f"{eps:g}: {cell}" for eps, cell in zip(eps_grid, cells, strict=True)))
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for run in runs:
            if run.seed == seeds[0]:
                for attribute in ATTRIBUTES:
                    figure, _ = run.calibration.by(attribute).plot()
                    figure.savefig(figures / f"reliability_{attribute}_eps_{run.eps:g}.png", dpi=150)
    print(
        "\n" + ", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting"))
    )
    return runs


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({deviation:.3f})"


def correlation(eps: Sequence[float], values: Sequence[float]) -> str:
    """Pearson's r with its 95 % interval; "-" for fewer than four runs or values that are all alike."""
    if len(values) < 4 or len(set(values)) == 1 or len(set(eps)) == 1:
        return "-"
    found = pearsonr(eps, values)
    interval = found.confidence_interval()
    return f"{found.statistic:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=list(EPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--figures", type=Path, default=None)
    given = parser.parse_args()
    main(given.eps, given.seeds, given.epochs, given.figures)

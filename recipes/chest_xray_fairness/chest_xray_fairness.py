"""Does a private chest-X-ray model treat the sexes differently, and does the monitor find the gap that was planted?

python recipes/chest_xray_fairness/chest_xray_fairness.py
python recipes/chest_xray_fairness/chest_xray_fairness.py --seeds 0 --eps 8 --figures figures
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from scipy.stats import pearsonr
from torch import Tensor, nn
from true_gap import FINDINGS, GROUP, GROUPS, Population, Truth, parity, probabilities

from lightning_dp import DPStrategy, FairnessMonitor
from lightning_dp.data import ChestXRayDataModule, FaintFindings
from lightning_dp.metrics import FairnessResult
from lightning_dp.metrics.estimate import Estimate
from lightning_dp.metrics.functional import AUROCComparison, compare_auroc
from lightning_dp.tasks import MultiLabelTask

EPS = (math.inf, 8.0, 2.0)
SEEDS = (0, 1, 2)
VARIANTS: dict[str, FaintFindings | None] = {"planted": FaintFindings("sex", "female", share=0.6), "control": None}
DATA_SEED = 100  # plus the seed: settings were chosen on the test sets of data seeds 0 to 2
SETS_AT_ONCE = 5  # test sets of the population that are in memory


@dataclass(frozen=True)
class Run:
    """One training: what it spent, what the monitor found on the test set, and what is true of the model.

    ``ideal`` and ``ideal_gap`` are accuracy and gap of an ideal detector on the test set, from the generator.
    """

    variant: str
    eps: float
    seed: int
    spent: float
    seconds: float
    ideal: float
    ideal_gap: float
    fairness: FairnessResult
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    truth: Truth

    @property
    def parity(self) -> Estimate:
        """The accuracy parity difference of females, with its interval."""
        return parity(self.fairness)

    def holds(self, value: float) -> bool:
        """Whether the interval of the monitor holds a value."""
        return self.parity.low <= value <= self.parity.high

    @property
    def auroc(self) -> list[float]:
        return [one.auroc.value for one in self.fairness.overall.outcomes]


def network() -> nn.Module:
    """Pictures averaged over 2 x 2 pixels, two convolutions, a linear layer: 9,859 weights."""
    return nn.Sequential(
        nn.AvgPool2d(2), Centred(), nn.Conv2d(1, 16, 5, padding=2), nn.GroupNorm(4, 16), nn.Mish(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.Mish(), nn.Flatten(), nn.Linear(32 * 7 * 7, len(FINDINGS)),
    )  # fmt: skip


class Centred(nn.Module):
    """Brightness from 0 to 1 becomes -1 to 1: constants, not statistics of the data."""

    def forward(self, pictures: Tensor) -> Tensor:
        return 2 * pictures - 1


def module(variant: str, seed: int, batch_size: int, n_train: int, n_test: int) -> ChestXRayDataModule:
    """The data of one seed; variants of one seed differ in the unfairness and in nothing else."""
    return ChestXRayDataModule(
        batch_size=batch_size, n_train=n_train, n_val=0, n_test=n_test, image_size=28, noise=0.05,
        unfairness=VARIANTS[variant], seed=DATA_SEED + seed,
    )  # fmt: skip


def train(
    eps: float, seed: int, data: ChestXRayDataModule, steps: int
) -> tuple[nn.Module, FairnessResult, float, float]:
    """Trains and tests once; eps inf: without privacy. The model, what the monitor found, eps spent, seconds."""
    start = time.perf_counter()
    seed_everything(seed, verbose=False)  # initial weights; the privacy noise has no seed
    private = math.isfinite(eps)
    task = MultiLabelTask(network(), len(FINDINGS), lr=8.0 if private else 0.1, momentum=0.9, lr_schedule="cosine")
    monitor = FairnessMonitor(GROUPS, "multilabel", class_names=FINDINGS, stages=("test",), log=())
    strategy = DPStrategy(eps=eps, delta=1e-5, max_grad_norm=0.1, unit="unit_id") if private else None
    trainer = Trainer(
        strategy="auto" if strategy is None else strategy,
        callbacks=[monitor],
        max_steps=steps if private else 10 * steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    spent = math.inf if strategy is None else strategy.privacy_spent().eps
    return task.eval(), monitor.result, spent, time.perf_counter() - start


def runs_of(
    seed: int, variants: Sequence[str], eps_grid: Sequence[float], steps: int, n_train: int, n_test: int, sets: int
) -> list[Run]:
    """All trainings of one seed, and one population for all of them."""
    trained = []
    for variant in variants:
        for eps in eps_grid:
            data = module(variant, seed, 1024 if math.isfinite(eps) else 128, n_train, n_test)
            data.prepare_data()
            trained.append((variant, eps, data, *train(eps, seed, data, steps)))
    populations = [Population() for _ in trained]
    planted = module("planted", seed, 128, n_train, n_test)
    for chunk in range(0, sets, SETS_AT_ONCE):
        n = min(SETS_AT_ONCE, sets - chunk) * n_test
        with_it, without = (planted.population(n, seed=chunk, planted=one) for one in (True, False))
        for (variant, _, _, model, *_), population in zip(trained, populations, strict=True):
            population.add(model, (with_it if variant == "planted" else without, without), n_test)
    made = []
    for (variant, eps, data, model, found, spent, seconds), population in zip(trained, populations, strict=True):
        test = data.arrays()
        made.append(
            Run(
                variant, eps, seed, spent, seconds, float(data.ideal_accuracies().mean()),
                data.planted_parity("sex")[GROUP], found, probabilities(model, test["test/inputs"]).numpy(),
                test["test/labels"].astype(np.int64), population.truth(),
            )
        )  # fmt: skip
    return made


def main(
    eps_grid: Sequence[float] = EPS,
    seeds: Sequence[int] = SEEDS,
    steps: int = 150,
    figures: Path | None = None,
    n_train: int = 14000,
    n_test: int = 2000,
    variants: Sequence[str] = tuple(VARIANTS),
    sets: int = 50,
) -> list[Run]:
    """All runs; prints the tables of the README."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs: list[Run] = []
    print(
        "| variant | eps | seed | accuracy (ideal) | found | true gap | in the interval | of it planted | ideal detector's "
        "| test sets that hold it | training |\n" + "|---" * 11 + "|"
    )
    for seed in seeds:
        for run in runs_of(seed, variants, eps_grid, steps, n_train, n_test, sets):
            runs.append(run)
            found, true = run.parity, run.truth
            print(
                f"| {run.variant} | {run.spent:.3f} | {run.seed} | {run.fairness.overall.accuracy.value:.3f} ({run.ideal:.3f}) "
                f"| {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}] | {true.gap:+.4f} ({true.error:.4f}) "
                f"| {'yes' if run.holds(true.gap) else '**no**'} | {true.gap - true.without:+.4f} | {run.ideal_gap:+.4f} "
                f"| {true.held}/{true.sets} | {run.seconds:.0f} s |",
                flush=True,
            )
    for variant in variants:
        of_variant = [run for run in runs if run.variant == variant]
        report_coverage(variant, of_variant, eps_grid)
        report_auroc(variant, of_variant, eps_grid)
        report_correlation(variant, of_variant)
        report_ages(variant, of_variant, eps_grid)
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for run in runs:
            if run.seed == seeds[0]:
                figure, _ = run.fairness.by("sex").plot()
                figure.savefig(figures / f"accuracy_{run.variant}_eps_{run.eps:g}.png", dpi=150)
    print(", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting")))
    return runs


def report_coverage(variant: str, runs: Sequence[Run], eps_grid: Sequence[float]) -> None:
    """How often the monitor's interval held the truth: on the runs' own test sets, and on further ones."""
    print()
    for eps in eps_grid:
        chosen = [run for run in runs if run.eps == eps]
        own = sum(run.holds(run.truth.gap) for run in chosen)
        held, sets = (sum(getattr(run.truth, name) for run in chosen) for name in ("held", "sets"))
        print(
            f"{variant}, eps {eps:g}: the interval holds the model's own gap on {own} of {len(chosen)} test sets, and on "
            f"{held} of {sets} further ones"
        )


def report_auroc(variant: str, runs: Sequence[Run], eps_grid: Sequence[float]) -> None:
    """AUROC of each finding over the seeds, and how sure it is that the private model is worse than the other one."""
    print(
        f"\n{variant}: AUROC, mean (sd) over seeds; p of no loss against the run without privacy, per seed (paired bootstrap)"
    )
    for eps in eps_grid:
        chosen = [run for run in runs if run.eps == eps]
        cells = [f"{name} {spread([run.auroc[k] for run in chosen])}" for k, name in enumerate(FINDINGS)]
        line = (
            f"  eps {eps:g}: " + ", ".join(cells) + f", mean {spread([statistics.mean(run.auroc) for run in chosen])}"
        )
        compared = [comparison(run, runs) for run in chosen if math.isfinite(eps)]
        p = [f"{found.p_mean:.3f}" for found in compared if found is not None]
        print(line + (f"; p = {', '.join(p)}" if p else ""))


def comparison(run: Run, runs: Sequence[Run]) -> AUROCComparison | None:
    """The run without privacy on the same data, set against a private one."""
    for other in runs:
        if other.seed == run.seed and other.variant == run.variant and not math.isfinite(other.eps):
            return compare_auroc(other.scores, run.scores, run.labels)
    return None


def report_correlation(variant: str, runs: Sequence[Run]) -> None:
    """Pearson's r of eps and parity over the private runs, and of a finding's frequency and what privacy costs it."""
    private = [run for run in runs if math.isfinite(run.eps)]
    r = correlation([run.eps for run in private], [run.parity.value for run in private])
    print(f"{variant}: Pearson's r between eps and accuracy parity of females, private runs: {r}")
    pairs = [(found, run) for run in private if (found := comparison(run, runs)) is not None]
    positives = [float(count) for _, run in pairs for count in run.labels.sum(0)]
    losses = [loss for found, _ in pairs for loss in (found.first - found.second)]
    print(
        f"{variant}: Pearson's r between positives and loss of AUROC, over findings: {correlation(positives, losses)}"
    )


def report_ages(variant: str, runs: Sequence[Run], eps_grid: Sequence[float]) -> None:
    """Accuracy parity of the age groups, in which nothing was planted."""
    for eps in eps_grid:
        chosen = [run for run in runs if run.eps == eps]
        cells = []
        for level in ChestXRayDataModule.attributes["age"]:
            rows = [run.fairness.by("age").row(level) for run in chosen]
            cells.append(
                f"{level} (n = {statistics.median(row.n for row in rows):g}) "
                f"{spread([row.accuracy_parity_difference.value for row in rows])}"
            )
        print(f"  {variant}, eps {eps:g}, accuracy parity by age: " + ", ".join(cells))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({deviation:.3f})"


def correlation(first: Sequence[float], second: Sequence[float]) -> str:
    """Pearson's r with its 95 % interval and p; "-" for fewer than four points or values that are all alike."""
    if len(first) < 4 or len(set(first)) == 1 or len(set(second)) == 1:
        return "-"
    found = pearsonr(first, second)
    interval = found.confidence_interval()
    return f"{found.statistic:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}], p = {found.pvalue:.2f}, {len(first)} points"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=list(EPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sets", type=int, default=50, help="further test sets of 2,000 fresh patients each")
    parser.add_argument("--figures", type=Path, default=None)
    given = parser.parse_args()
    main(given.eps, given.seeds, given.steps, given.figures, variants=given.variants, sets=given.sets)

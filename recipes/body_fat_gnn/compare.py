"""The graph network with and without privacy, over seeds, beside linear regression and a network on silhouettes.

    python recipes/body_fat_gnn/compare.py --seeds 0 1 2                       # the main table
    python recipes/body_fat_gnn/compare.py --networks MeshGNN SilhouetteCNN    # and masks of the same bodies
    python recipes/body_fat_gnn/compare.py --grid --seeds 0                    # decimation levels and layer types

Further arguments go to the command line of ``lightning-dp fit``. The linear baselines, on body mass index and waist, are
fitted without privacy, which is the best case for them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lightning_dp.cli import command_line
from lightning_dp.data import BodyFatDataModule

CONFIGS = {
    "MeshGNN": str(Path(__file__).with_name("config.yaml")),
    "SilhouetteCNN": str(Path(__file__).with_name("silhouette.yaml")),
}
METRICS = ("r2_vat", "r2_asat", "mae_vat", "mae_asat", "pearson_vat", "pearson_asat")
PUBLIC = ["--trainer.strategy=auto", "--trainer.callbacks=[]"]
# Without noise, the silhouette network stays at the mean in some runs at the private rate.
PUBLIC_OF: dict[str, list[str]] = {"MeshGNN": [], "SilhouetteCNN": ["--model.init_args.lr=2e-3"]}


def scores(predicted: Any, target: Any) -> list[float]:
    """R2, mean absolute error and Pearson's r of both targets, in the order of METRICS."""
    r2 = 1 - ((predicted - target) ** 2).sum(0) / ((target - target.mean(0)) ** 2).sum(0)
    r = [float(np.corrcoef(p, t)[0, 1]) for p, t in zip(predicted.T, target.T, strict=True)]
    return [*map(float, r2), *map(float, np.abs(predicted - target).mean(0)), *r]


def baselines(data: BodyFatDataModule) -> dict[str, list[float]]:
    """Least squares on body mass index and waist, and with sex and age added, fitted on train and scored on test."""
    made = data.simulated()
    train, test = slice(0, data.sizes["train"]), slice(-data.sizes["test"], None)
    found = {}
    both = np.concatenate([made["anthropometry"], made["covariates"]], axis=1)
    for name, x in (("BMI, waist", made["anthropometry"]), ("BMI, waist, sex, age", both)):
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
        weights = np.linalg.lstsq(design[train], made["targets"][train].astype(np.float64), rcond=None)[0]
        found[f"linear on {name}"] = scores(design[test] @ weights, made["targets"][test])
    return found


def train(config: str, seed: int, part: str, overrides: list[str]) -> tuple[list[float], float, int, float]:
    """One run: the metrics, seconds of training, number of weights, and eps spent (infinite without privacy)."""
    arguments = [f"--config={config}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", *overrides]
    run = command_line(arguments, run=False)
    run.datamodule.prepare_data()
    start = time.perf_counter()
    run.trainer.fit(run.model, run.datamodule)
    seconds = time.perf_counter() - start
    evaluate = run.trainer.validate if part == "val" else run.trainer.test
    (result,) = evaluate(run.model, run.datamodule, verbose=False)
    spent = getattr(run.trainer.strategy, "privacy_spent", None)
    count = sum(p.numel() for p in run.model.parameters())
    return [result[f"{part}/{name}"] for name in METRICS], seconds, count, spent().eps if spent else float("inf")


def over_seeds(config: str, name: str, seeds: list[int], part: str, overrides: list[str]) -> list[list[float]]:
    """Train with every seed and print the row."""
    runs = []
    for seed in seeds:
        runs.append(train(config, seed, part, overrides))
        print(f"{name}, seed {seed}: R2 {runs[-1][0][0]:.3f}, {runs[-1][0][1]:.3f}", file=sys.stderr, flush=True)
    values = list(zip(*(run[0] for run in runs), strict=True))
    shown = [f"{statistics.mean(v):.3f} +- {np.std(v, ddof=1) if len(v) > 1 else 0:.3f}" for v in values]
    seconds = [run[1] for run in runs]
    row = [
        name,
        *shown,
        f"{runs[0][2]:,}",
        f"{max(run[3] for run in runs):.3f}",
        f"{min(seconds):.0f} to {max(seconds):.0f} s",
    ]
    print("| " + " | ".join(row) + " |", flush=True)
    return [run[0] for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=["val", "test"], default="test")
    parser.add_argument("--only", choices=["private", "public"])
    parser.add_argument("--networks", nargs="+", choices=list(CONFIGS), default=["MeshGNN"])
    parser.add_argument("--grid", action="store_true", help="decimation levels and layer types of MeshGNN")
    arguments, overrides = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    run = command_line([f"--config={CONFIGS['MeshGNN']}", *overrides], run=False)
    print("| | " + " | ".join(METRICS) + " | weights | eps | training |\n|" + "---|" * (len(METRICS) + 4))
    ceiling = run.datamodule.simulated()["ceiling"]
    print(f"| ceiling of the generator | {ceiling[0]:.3f} | {ceiling[1]:.3f} |" + " |" * 7)
    for name, found in baselines(run.datamodule).items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found) + " | | | |", flush=True)
    for network in arguments.networks:
        variants: dict[str, list[str]] = {"": []}
        if arguments.grid and network == "MeshGNN":
            variants = {
                f", {conv}": [f"--model.init_args.network.init_args.conv={conv}"] for conv in ("sage", "gcn", "gat")
            }
            variants |= {f", {level} %": [f"--data.init_args.level={level}"] for level in (1, 5)}
        for name, settings in variants.items():
            config, how = CONFIGS[network], (arguments.seeds, arguments.part)
            if arguments.only != "private":
                over_seeds(config, f"{network}{name}", *how, [*PUBLIC, *PUBLIC_OF[network], *settings, *overrides])
            if arguments.only != "public":
                over_seeds(config, f"{network}, private{name}", *how, [*settings, *overrides])


if __name__ == "__main__":
    main()

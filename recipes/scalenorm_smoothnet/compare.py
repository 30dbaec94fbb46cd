"""ScaleNorm ResNet-9, the same without ScaleNorm, SmoothNet and a plain CNN at the same budgets, with the same tuning.

    python recipes/scalenorm_smoothnet/compare.py tune --data.init_args.root=FOLDER
    python recipes/scalenorm_smoothnet/compare.py measure --data.init_args.root=FOLDER

``tune`` trains each network with each learning rate of one grid at eps = 8 and shows validation accuracy (of a split of its
own, seed 100); ``measure`` trains with the best ones, `LEARNING_RATES`, on three seeds and shows test accuracy. Tuning reads
private data, and no eps covers it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning_dp.cli import command_line

CONFIG = Path(__file__).with_name("config.yaml")
GRID = (1.0, 4.0, 16.0)
NETWORKS = {
    "scalenorm": ("ResNet9", {"width": 16}),
    "resnet9": ("ResNet9", {"width": 16, "scale_norm": "false"}),
    "smoothnet": ("SmoothNet", {"width": 1.0, "depth": 2}),
    "cnn": ("ColourCNN", {"width": 16, "size": 16}),
}
LEARNING_RATES = {"scalenorm": 1.0, "resnet9": 4.0, "smoothnet": 4.0, "cnn": 4.0}  # what `tune` gave
TUNING_SEED = 100


def run(network: str, lr: float, eps: float | None, seed: int, overrides: Sequence[str]) -> tuple[float, float, float]:
    """Trains once: accuracy (on validation data where there are any), eps spent, seconds. ``eps=None``: without privacy."""
    start = time.perf_counter()
    kind, sizes = NETWORKS[network]
    path = "--model.init_args.network"
    arguments = [
        f"--config={CONFIG}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", f"{path}={kind}",
        f"{path}.init_args.num_classes=9", f"--model.init_args.lr={lr}",
        *(f"{path}.init_args.{name}={value}" for name, value in sizes.items()),
    ]  # fmt: skip
    if eps is None:
        arguments += ["--trainer.strategy=auto", "--trainer.callbacks=[]"]
    else:
        arguments += [f"--trainer.strategy.init_args.eps={eps}"]
    # The seed of the whole run also draws the split; the noise has no seed.
    session = command_line([*arguments, f"--data.init_args.seed={seed}", *overrides], run=False)
    session.trainer.fit(session.model, session.datamodule)
    part, evaluate = (
        ("val", session.trainer.validate) if session.datamodule.val_fraction else ("test", session.trainer.test)
    )
    (result,) = evaluate(session.model, session.datamodule, verbose=False)
    spent = float("inf") if eps is None else session.trainer.strategy.privacy_spent().eps
    return result[f"{part}/accuracy"], spent, time.perf_counter() - start


def tune(
    networks: Sequence[str], grid: Sequence[float], eps: float | None, overrides: Sequence[str]
) -> dict[str, float]:
    """The best learning rate of each network, by validation accuracy at one seed."""
    best = {}
    for network in networks:
        scores = {}
        for lr in grid:
            scores[lr], _, seconds = run(
                network, lr, eps, TUNING_SEED, ["--data.init_args.val_fraction=0.2", *overrides]
            )
            print(f"{network}, lr {lr:g}: validation accuracy {scores[lr]:.4f} in {seconds:.0f} s", flush=True)
        best[network] = max(scores, key=scores.__getitem__)
    return best


def measure(
    networks: Sequence[str],
    rates: dict[str, float],
    eps_grid: Sequence[float | None],
    seeds: Sequence[int],
    overrides: Sequence[str],
) -> dict[tuple[str, float | None], list[float]]:
    """Test accuracy of each network, eps and seed."""
    found = {}
    for eps in eps_grid:
        for network in networks:
            runs = [run(network, rates[network], eps, seed, overrides) for seed in seeds]
            accuracies = [accuracy for accuracy, _, _ in runs]
            spread = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
            print(
                f"{network}, eps {max(spent for _, spent, _ in runs):.3f}: test accuracy {statistics.mean(accuracies):.4f}, "
                f"standard deviation {spread:.4f}, {', '.join(f'{a:.4f}' for a in accuracies)}; "
                f"{statistics.mean(seconds for _, _, seconds in runs):.0f} s a run",
                flush=True,
            )
            found[network, eps] = accuracies
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["tune", "measure"])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--grid", type=float, nargs="+", default=list(GRID))
    parser.add_argument("--eps", type=float, nargs="+", default=[7.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--not_private", action="store_true", help="the same without privacy")
    arguments, overrides = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if arguments.task == "tune":
        print(tune(arguments.networks, arguments.grid, None if arguments.not_private else 8.0, overrides))
    else:
        eps_grid = [None] if arguments.not_private else arguments.eps
        measure(arguments.networks, LEARNING_RATES, eps_grid, arguments.seeds, overrides)


if __name__ == "__main__":
    main()

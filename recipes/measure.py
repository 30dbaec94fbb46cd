"""Train and test one recipe over several seeds, and print each run with mean and spread.

    python recipes/measure.py recipes/quickstart/config.yaml --seeds 0 1 2

The seed sets initial weights and data splits. The privacy noise has no seed, so two runs with one seed differ.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from importlib.metadata import version

from lightning_dp.cli import command_line


def measure(config: str, seed: int, metrics: list[str], overrides: list[str]) -> tuple[list[float], float, str]:
    """One run: the metrics, seconds for data, training and accounting, and what was spent."""
    start = time.perf_counter()
    arguments = [f"--config={config}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", *overrides]
    run = command_line(arguments, run=False)
    run.trainer.fit(run.model, run.datamodule)
    evaluate = run.trainer.validate if metrics[0].startswith("val") else run.trainer.test
    (result,) = evaluate(run.model, run.datamodule, verbose=False)
    strategy = run.trainer.strategy
    spent = str(strategy.privacy_spent()) if hasattr(strategy, "privacy_spent") else "without privacy (eps = inf)"
    return [result[metric] for metric in metrics], time.perf_counter() - start, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", nargs="+", default=["test/accuracy"], help="of validation or of test, not both")
    arguments, overrides = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    values = []
    for seed in arguments.seeds:
        found, seconds, spent = measure(arguments.config, seed, arguments.metric, overrides)
        values.append(found)
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in zip(arguments.metric, found, strict=True))
        print(f"seed {seed}: {shown} in {seconds:.0f} s; {spent}", flush=True)
    names = ", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting"))
    for metric, of_metric in zip(arguments.metric, zip(*values, strict=True), strict=True):
        spread = statistics.stdev(of_metric) if len(of_metric) > 1 else 0.0
        print(
            f"{metric}: mean {statistics.mean(of_metric):.4f}, standard deviation {spread:.4f} over {len(values)} seeds"
        )
    print(names)


if __name__ == "__main__":
    main()

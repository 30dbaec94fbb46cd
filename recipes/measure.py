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


def measure(config: str, seed: int, metric: str, overrides: list[str]) -> tuple[float, float, str]:
    """One run: the metric, seconds for data, training and accounting, and what was spent."""
    start = time.perf_counter()
    arguments = [f"--config={config}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", *overrides]
    run = command_line(arguments, run=False)
    run.trainer.fit(run.model, run.datamodule)
    evaluate = run.trainer.validate if metric.startswith("val") else run.trainer.test
    (result,) = evaluate(run.model, run.datamodule, verbose=False)
    return result[metric], time.perf_counter() - start, str(run.trainer.strategy.privacy_spent())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", default="test/accuracy")
    arguments, overrides = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    values = []
    for seed in arguments.seeds:
        value, seconds, spent = measure(arguments.config, seed, arguments.metric, overrides)
        values.append(value)
        print(f"seed {seed}: {arguments.metric} {value:.4f} in {seconds:.0f} s; {spent}", flush=True)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    names = ", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting"))
    print(f"mean {statistics.mean(values):.4f}, standard deviation {spread:.4f} over {len(values)} seeds ({names})")


if __name__ == "__main__":
    main()

"""Private and non-private detectors, by day and by night, on the artist they were trained on and on another.

    python recipes/food_detection/compare.py --seeds 0 1 2
    python recipes/food_detection/compare.py --variants plain_day_only --seeds 0 1 2

`private` is config.yaml as it is, `plain` the same without the strategy and the averaging of iterates; `plain_day_only` is
`plain` trained on day scenes alone. The seed sets initial weights; the scenes are the same in all runs.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

from lightning_dp.cli import command_line
from lightning_dp.strategies import DPStrategy

CONFIG = Path(__file__).with_name("config.yaml")
PLAIN = ["--trainer.strategy=auto", "--trainer.callbacks=null"]
VARIANTS = {"private": [], "plain": PLAIN, "plain_day_only": [*PLAIN, "--data.init_args.night_fraction=0"]}
MEASURES = [f"{measure}{group}" for measure in ("map_50", "count_area") for group in ("", "/day", "/night")]


def session_of(variant: str, seed: int, overrides: list[str]) -> Any:
    """Trainer, module and data of one run."""
    arguments = [f"--config={CONFIG}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
    return command_line([*arguments, *VARIANTS[variant], *overrides], run=False)


def run(variant: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """Trains once; every measure on the test scenes and, as ``shifted/...``, on those of another artist."""
    start = time.perf_counter()
    session = session_of(variant, seed, overrides)
    session.trainer.fit(session.model, session.datamodule)
    strategy = session.trainer.strategy
    found = {
        "eps": strategy.privacy_spent().eps if isinstance(strategy, DPStrategy) else math.inf,
        "seconds": time.perf_counter() - start,
    }
    shifted = session_of(variant, seed, [*overrides, "--data.init_args.test_vendor=twitter"]).datamodule
    for prefix, data in (("", session.datamodule), ("shifted/", shifted)):
        (result,) = session.trainer.test(session.model, data, verbose=False)
        found |= {f"{prefix}{name}": result[f"test/{name}"] for name in MEASURES}
    return found


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["private", "plain"], choices=list(VARIANTS))
    options, overrides = parser.parse_known_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runs: dict[str, list[dict[str, float]]] = {}
    for variant in options.variants:
        runs[variant] = []
        for seed in options.seeds:
            runs[variant].append(run(variant, seed, overrides))
            last = runs[variant][-1]
            shown = ", ".join(f"{name} {last[name]:.3f}" for name in ("map_50", "count_area"))
            print(f"{variant}, seed {seed}: {shown}, eps {last['eps']:.3f}, {last['seconds']:.0f} s", flush=True)
        print(f"{variant}, {len(options.seeds)} seeds: mean (standard deviation)")
        for name in runs[variant][0]:
            values = [one[name] for one in runs[variant]]
            spread = statistics.stdev(values) if len(values) > 1 and math.isfinite(values[0]) else 0.0
            print(f"  {name:24s} {statistics.mean(values):.3f} ({spread:.3f})", flush=True)
    return runs


if __name__ == "__main__":
    main()

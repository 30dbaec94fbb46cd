"""DP-SGD and bias-aware minimisation side by side: accuracy, and the bias of the clipped sum on training data.

    python recipes/bam/compare.py --eps 2 8 --seeds 0 1 2

The bias is the mean over the last half of the steps of ``||clipped sum - plain sum|| / B``. It is computed from private data
without noise: it may be looked at where the data are public, as here, and is covered by no eps.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_dp.cli import command_line

CONFIG = Path(__file__).with_name("config.yaml")
METHODS = {"dp_sgd": ["alpha=0"], "bam": [], "dp_sat": ["direction=previous", "alpha=null"]}


class Bias(Callback):
    """Keeps what the strategy logs of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        found = {k.rsplit("_", 1)[1]: float(v) for k, v in trainer.callback_metrics.items() if "not_private" in k}
        self.steps.append(found)

    def mean(self, name: str) -> float:
        """Over the last half of the steps."""
        return statistics.mean(step[name] for step in self.steps[len(self.steps) // 2 :])


def run(method: str, eps: float, seed: int, metric: str, overrides: list[str]) -> dict[str, float]:
    """Trains once and evaluates."""
    start, prefix = time.perf_counter(), "--trainer.strategy.init_args."
    settings = [f"{prefix}{s}" for s in (*METHODS[method], f"eps={eps}", "log_bias_not_private=true")]
    arguments = [f"--config={CONFIG}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", *settings]
    session = command_line([*arguments, *overrides], run=False)
    watch = Bias()
    session.trainer.callbacks.append(watch)
    session.trainer.fit(session.model, session.datamodule)
    evaluate = session.trainer.validate if metric.startswith("val") else session.trainer.test
    (result,) = evaluate(session.model, session.datamodule, verbose=False)
    spent = session.trainer.strategy.privacy_spent().eps
    found = {name: watch.mean(name) for name in ("norm", "bound", "cosine")}
    return {"accuracy": result[metric], **found, "eps": spent, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[2.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["dp_sgd", "bam"], choices=list(METHODS))
    parser.add_argument("--metric", default="test/accuracy")
    arguments, overrides = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for eps in arguments.eps:
        for method in arguments.methods:
            runs = [run(method, eps, seed, arguments.metric, overrides) for seed in arguments.seeds]
            spread = statistics.stdev(r["accuracy"] for r in runs) if len(runs) > 1 else 0.0
            means = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
            each = " ".join(f"{r['accuracy']:.4f}" for r in runs)
            print(
                f"eps {means['eps']:.3f} {method:7s} {arguments.metric} {means['accuracy']:.4f} (sd {spread:.4f}: {each}); "
                f"bias {means['norm']:.4f}, bound {means['bound']:.4f}, cosine {means['cosine']:.4f}; "
                f"{means['seconds']:.0f} s a run",
                flush=True,
            )


if __name__ == "__main__":
    main()

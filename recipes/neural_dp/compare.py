"""NeuralDP beside DP-SGD on Fashion-MNIST, at several eps: features are computed once, then all runs follow.

    python recipes/neural_dp/compare.py --eps 1 3 8 --seeds 0 1 2
    python recipes/neural_dp/compare.py --held-out 10000 --method local --projected 64 256   # the search

The methods do not give the same guarantee: see README.md.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_dp import DPStrategy, NeuralDPStrategy
from lightning_dp.data import FashionMNISTDataModule
from lightning_dp.models import GroupNormMLP, ProjectedLinear
from lightning_dp.tasks import ClassificationTask

IN_FEATURES = 3969
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
}


def released(eps: float, options: argparse.Namespace, **labels: Any) -> tuple[LightningModule, Trainer, int]:
    """What config.yaml in this folder says."""
    network = ProjectedLinear(IN_FEATURES, projected=options.dimension)
    module = ClassificationTask(network, lr=options.lr, lr_schedule="cosine")
    strategy = NeuralDPStrategy(eps=eps, delta=1e-5, layer="network.features", **labels)
    return module, Trainer(strategy=strategy, max_epochs=options.epochs, **QUIET), 1000


def dp_sgd(eps: float) -> tuple[LightningModule, Trainer, int]:
    """What recipes/fashion_mnist/config.yaml says, at another eps."""
    module = ClassificationTask(GroupNormMLP(IN_FEATURES, hidden=128), lr=16.0)
    strategy = DPStrategy(eps=eps, delta=1e-5, max_grad_norm=0.1, physical_batch_size=512)
    average = EMAWeightAveraging(decay=0.97)
    return module, Trainer(strategy=strategy, max_steps=200, callbacks=[average], **QUIET), 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", nargs="+", default=["local", "local_labels", "dp_sgd"])
    parser.add_argument("--projected", type=int, nargs="+", default=[256])
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--held-out", type=int, default=0, help="training images to validate on, in place of the test set"
    )
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = FashionMNISTDataModule(features="scattering", val_size=options.held_out)
    for method in options.method:
        for eps in options.eps:
            for dimension in options.projected if method.startswith("local") else [0]:
                options.dimension, values, start = dimension, [], time.perf_counter()
                for seed in options.seeds:
                    seed_everything(seed, verbose=False)
                    labels: dict[str, Any] = {"labels": "public"}
                    if method == "local_labels":  # a quarter of the budget for the labels
                        labels = {"labels": "randomized", "label_eps": eps / 4, "num_classes": 10}
                    run = dp_sgd(eps) if method == "dp_sgd" else released(eps, options, **labels)
                    module, trainer, data.batch_size = run
                    trainer.fit(module, data)
                    if options.held_out:
                        trainer.limit_val_batches = 1.0
                    evaluate = trainer.validate if options.held_out else trainer.test
                    (found,) = evaluate(module, data, verbose=False)
                    values.append(found["val/accuracy" if options.held_out else "test/accuracy"])
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                strategy: Any = trainer.strategy
                seconds = (time.perf_counter() - start) / len(values)
                print(
                    f"{method} eps {eps:g} dimension {dimension}: {statistics.mean(values):.4f} +- {spread:.4f} "
                    f"({', '.join(f'{v:.4f}' for v in values)}), {seconds:.0f} s a run; {strategy.privacy_spent()}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Train networks on volumes with a planted lesion, and ask whether their slice weights find its slice in another brain.

    python recipes/volumes_2p5d/compare.py --seeds 0 1 2
    python recipes/volumes_2p5d/compare.py --networks attention mean max lstm transformer conv3d acs --seeds 0
    python recipes/volumes_2p5d/compare.py --not-private --seeds 0 1 2
    python recipes/volumes_2p5d/compare.py --seeds 0 --figure slices.png

Further arguments go to the command line of ``lightning-dp fit``. Rank 1 of the planted slice is the largest weight; ties count
against it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_matthews_corrcoef

from lightning_dp.cli import command_line
from lightning_dp.metrics.estimate import wilson_interval
from lightning_dp.models import SliceNet
from lightning_dp.models.volumes import plot_slice_weights, slice_mass, slice_ranks, spearman, top_k_overlap

CONFIG = Path(__file__).with_name("config.yaml")
POOLINGS = ("attention", "mean", "max", "lstm", "transformer")
BASELINES = ("conv3d", "acs", "2.5d")
NETWORK = "--model.init_args.network"
NOT_PRIVATE = ("--trainer.strategy=auto", "--trainer.callbacks=null", "--trainer.max_steps=250",
               "--data.init_args.batch_size=128", "--model.init_args.lr=0.01",
               "--model.init_args.lr_schedule=constant")  # fmt: skip
TOP = 3


def settings(network: str) -> list[str]:
    """What changes in the configuration for one of the networks."""
    if network in POOLINGS:
        return [f"{NETWORK}.init_args.pooling={network}"]
    encoder = {"class_path": "SliceEncoder", "init_args": {"widths": [16], "stem": 8, "stem_stride": 4}}
    options = {"backbone": encoder, "convolutions": network, "map_pooling": "max"}
    return [f"{NETWORK}={json.dumps({'class_path': 'VolumeNet', 'init_args': options})}"]


def together(parts: list[dict[str, Tensor]]) -> Tensor:
    """The slices of all axes, one after the other, of all batches."""
    return torch.cat([torch.cat(list(part.values()), 1) for part in parts])


def evaluate(network: torch.nn.Module, loader: Any) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Metrics of the labels; and, of the volumes with a lesion, how often its slice is among the first three."""
    network.eval()
    logits, labels, planted, attention, mass = [], [], [], [], []
    for volumes, label, where in loader:
        with torch.no_grad():
            logits.append(network(volumes))
        labels.append(label)
        planted.append(where)
        lesions = volumes[label == 1]
        mass.append(slice_mass(network, lesions, target=1))
        if isinstance(network, SliceNet) and hasattr(network.pooling, "attention"):
            with torch.no_grad():
                attention.append(network.slice_weights(lesions))
    scores, label = torch.cat(logits).softmax(1)[:, 1], torch.cat(labels)
    found = {
        "accuracy": float(((scores > 0.5) == (label == 1)).float().mean()),
        "auroc": float(binary_auroc(scores, label)),
        "mcc": float(binary_matthews_corrcoef(scores, label)),
    }
    where = torch.cat(planted)[label == 1]
    counts = {f"HiResCAM {name}": count for name, count in hits(together(mass), where).items()}
    if attention:
        weights = together(attention)
        counts = {f"attention {name}": count for name, count in hits(weights, where).items()} | counts
        found["weight of the planted slice"] = float(weights.gather(1, where.unsqueeze(1)).mean())
        found["spearman"] = float(spearman(weights, together(mass)).nanmean())
        found["overlap of the first 3"] = float(top_k_overlap(weights, together(mass), TOP).mean())
    return found, counts


def hits(weights: Tensor, where: Tensor) -> dict[str, tuple[int, int]]:
    """Planted slices among the first three: of all slices, and of those of the lesion's own view, view by view."""
    rows, side = torch.arange(len(where)), weights.shape[1] // 3
    axis = where // side
    own = slice_ranks(weights.unflatten(1, (3, side))[rows, axis], where % side) <= TOP
    views = {f"in {name}": (int(own[axis == k].sum()), int((axis == k).sum())) for k, name in enumerate("zxy")}
    everywhere = slice_ranks(weights, where) <= TOP
    return {"of all": (int(everywhere.sum()), len(where)), "of its view": (int(own.sum()), len(where)), **views}


def draw(network: SliceNet, loader: Any, path: str) -> None:
    """The first test volume with a lesion: its slice weights, beside HiResCAM."""
    volumes, label, planted = next(iter(loader))
    volume, where = volumes[label == 1][:1], int(planted[label == 1][0])
    axis, index = divmod(where, volume.shape[-1])
    weights, mass = (
        {k: v[0].detach() for k, v in found.items()}
        for found in (network.slice_weights(volume), slice_mass(network, volume))
    )
    plot_slice_weights(volume[0], weights, {"zxy"[axis]: index}, {"HiResCAM": mass}).savefig(path, dpi=120)


def run(network: str, seed: int, private: bool, part: str, figure: str | None, overrides: list[str]) -> dict[str, Any]:
    """Trains once and evaluates."""
    start = time.perf_counter()
    arguments = [f"--config={CONFIG}", f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
    chosen = settings(network) + ([] if private else list(NOT_PRIVATE))
    session = command_line([*arguments, *chosen, *overrides], run=False)
    session.trainer.fit(session.model, session.datamodule)
    loader = session.datamodule.test_dataloader() if part == "test" else session.datamodule.val_dataloader()
    metrics, counts = evaluate(session.model.network, loader)
    if figure is not None:
        draw(session.model.network, loader, figure)
    eps = session.trainer.strategy.privacy_spent().eps if private else float("inf")
    return {"metrics": metrics, "counts": counts, "eps": eps, "seconds": time.perf_counter() - start}


def report(network: str, runs: list[dict[str, Any]]) -> None:
    for name in runs[0]["metrics"]:
        values = [r["metrics"][name] for r in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"  {network}: {name} {statistics.mean(values):.3f} (sd {spread:.3f})", flush=True)
    for name in runs[0]["counts"]:
        each = []
        for count, n in (r["counts"][name] for r in runs):
            if not n:  # few test volumes, and none with a lesion in this view
                each.append("0/0")
                continue
            low, high = wilson_interval(count, n)
            each.append(f"{count}/{n} = {count / n:.3f} [{low:.3f}, {high:.3f}]")
        print(f"  {network}: planted slice in the first {TOP}, {name}: {'; '.join(each)}", flush=True)


def main(words: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["attention"], choices=[*POOLINGS, *BASELINES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--not-private", action="store_true")
    parser.add_argument("--part", choices=["val", "test"], default="test")
    parser.add_argument("--figure", help="file to which the slice weights of one volume are drawn (attention only)")
    arguments, overrides = parser.parse_known_args(words)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = {}
    for network in arguments.networks:
        figure = arguments.figure if network == "attention" else None
        results[network] = [
            run(network, seed, not arguments.not_private, arguments.part, figure, overrides) for seed in arguments.seeds
        ]
        first = results[network][0]
        seconds = ", ".join(f"{r['seconds']:.0f}" for r in results[network])
        print(f"{network}: eps {first['eps']:.3f}, seeds {arguments.seeds}, seconds {seconds}", flush=True)
        report(network, results[network])
    return results


if __name__ == "__main__":
    main()

"""Feeds every metric from several gloo ranks, ragged and empty ones among them, and saves what each rank computes.

Arguments: folder, rank, number of ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_dp.metrics import Calibration, Fairness, Multiplicity, ObjectCountArea, SelectivePrediction
from lightning_dp.metrics.base import SummedMetric
from tests.metrics.helpers import GROUPS, Data, data

N = 151

#: Which samples a rank of two has: ragged halves, and nothing at all on the second.
SPLITS = {"ragged": ([0, 100], [100, N]), "empty": ([0, N], [N, N])}


def metrics(task: Any) -> dict[str, SummedMetric]:
    size = None if task == "binary" else 4
    found: dict[str, SummedMetric] = {
        "calibration": Calibration(task, size, groups=GROUPS),
        "fairness": Fairness(GROUPS, task, size, n_boot=100),
    }
    if task != "multilabel":
        found["selective"] = SelectivePrediction(task, size, groups=GROUPS)
        found["multiplicity"] = Multiplicity(3, task, size, groups=GROUPS)
    return found


def feed(metric: SummedMetric, d: Data, part: Tensor) -> None:
    if isinstance(metric, Multiplicity):
        tally = metric.tally(d.targets[part], d.groups[part])
        for k in range(3):
            tally.add(d.probs.roll(k, 0)[part])
        metric.update(tally)
    else:
        metric.update(d.probs[part], d.targets[part], d.groups[part])


def run(rank: int, ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in ("binary", "multiclass", "multilabel"):
        d = data(task, N, 7)
        for split, bounds in SPLITS.items():
            start, stop = bounds[rank] if ranks == 2 else (0, N)
            for name, metric in metrics(task).items():
                for part in torch.arange(start, stop).split(40):  # an empty range has one empty part
                    feed(metric, d, part)
                found[f"{task}/{split}/{name}"] = metric.result().to_dict()
                scalars = {key: float(value) for key, value in metric.compute().items()}
                found[f"{task}/{split}/{name}/scalars"] = {k: v if v == v else None for k, v in scalars.items()}
                # Synchronised and let go again: what this rank holds is its own, and more may be added.
                found[f"{task}/{split}/{name}/own"] = int(metric._local_counts()[0].sum())
    for split, bounds in SPLITS.items():
        start, stop = bounds[rank] if ranks == 2 else (0, N)
        found[f"object counts/{split}"] = object_counts(start, stop)
    never = Calibration("binary")
    if rank == 0:
        never.update(torch.tensor([0.5]), torch.tensor([1]))
    found["never updated on one rank"] = never.result().overall.n
    return found


def object_counts(start: int, stop: int) -> list[float]:
    """The area of all classes and of each, of images of which every one shows and finds two objects."""
    d = data("multiclass", N, 8)
    metric = ObjectCountArea(4)
    scores, labels = d.probs.topk(2, 1)
    metric.update([], [])  # a rank without an image is asked all the same
    for i in range(start, stop):
        truth = torch.stack([d.targets[i], d.targets[(i + 1) % N]])
        metric.update([{"scores": scores[i], "labels": labels[i]}], [{"labels": truth}])
    return [float(metric.compute()), *(float(area) for area in metric.per_class())]


def main(folder: Path, rank: int, ranks: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=ranks)
    found = run(rank, ranks)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

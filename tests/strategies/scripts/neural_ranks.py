"""Releases on the given number of processes; each rank writes what it saw. Arguments: folder, processes."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp import NeuralDPStrategy
from tests.strategies.helpers import CLASSES, FEATURES, Tiny, dataset, flat, trainer

WIDTH = 5


class Fixed(Tiny):
    """A frozen extractor and a head; with batch normalisation if asked for."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__(lr=0.1, momentum=0.9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.features = nn.Linear(FEATURES, WIDTH).requires_grad_(False)
            self.net = nn.Sequential(
                nn.BatchNorm1d(WIDTH) if normalised else nn.Identity(),
                nn.Linear(WIDTH, 8),
                nn.Tanh(),
                nn.Linear(8, CLASSES),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.features(x))


def run(
    module: Fixed, devices: int, n: int = 63, batch: int = 16, *, rewind: Path | None = None, **arguments: Any
) -> dict[str, Any]:
    plugin = NeuralDPStrategy(layer="features", timeout=timedelta(seconds=60), **{"labels": "public", **arguments})
    data = DataLoader(dataset(n), batch // devices)
    trained = trainer(plugin, devices=devices, max_epochs=2)
    trained.fit(module, data)
    if rewind is not None:
        trained.save_checkpoint(rewind)
        trained.fit_loop.max_epochs = 4
        trained.fit(module, data, ckpt_path=rewind)
    assert plugin.releases is not None
    return {
        "parameters": torch.cat([flat(module), *(b.flatten().float() for b in module.buffers())]),
        "vectors": plugin.releases.vectors,
        "labels": plugin.releases.labels[1],
        "ledger": plugin.ledger.steps,
        "eps": plugin.privacy_spent().eps,
        "noise_multiplier": plugin.noise_multiplier,
        "rank": plugin.global_rank,
        "sizes": module.sizes,
    }


def main(folder: Path, devices: int) -> None:
    found = {
        # Whole batches: Lightning shuffles what it shards.
        "exact": run(Fixed(), devices, 64, 64, noise_multiplier=0.0),
        # An odd number: one rank has a sample more.
        "noisy": run(Fixed(normalised=True), devices, eps=3, labels="randomized", label_eps=1.0, num_classes=CLASSES),
        "rewound": run(Fixed(), devices, eps=3, rewind=folder / f"rewind-{devices}.ckpt"),
    }
    torch.save(found, folder / f"{devices}-{found['exact']['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if (
        torch.distributed.is_initialized()
    ):  # left to the interpreter's end, gloo's threads now and then abort the process
        torch.distributed.destroy_process_group()

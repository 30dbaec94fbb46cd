"""How training scales to two processes, private beside plain: samples a second of two gloo ranks over those of one.

    python -m benchmarks.ranks

Every rank has one thread; the batch is the same over all ranks together. The figure is the ratio of the two speed-ups.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import NETWORKS
from lightning_dp import DPStrategy

NETWORK, STEPS, WARM_UP = "resnet9", 24, 4


class Net(LightningModule):
    """The benchmark's ResNet-9."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NETWORKS[NETWORK].build()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(Callback):
    """Writes the median time of a step to a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, [0.0]
        self.last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One thread a rank."""
        torch.set_num_threads(1)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Takes the time since the step before."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank 0 writes."""
        if trainer.is_global_zero:
            self.path.write_text(str(statistics.median(self.seconds[WARM_UP:])))


def seconds_a_step(private: bool, ranks: int) -> float:
    """Median time of one step over the whole batch."""
    batch = NETWORKS[NETWORK].batch_size
    n = batch * STEPS
    data = TensorDataset(torch.randn(n, 3, 32, 32), torch.randint(0, 10, (n,)))
    # DPStrategy's batch size is that of all ranks together, DDP's is each rank's.
    loader = DataLoader(data, batch_size=batch if private else batch // ranks)
    strategy: Any = DDPStrategy(start_method="spawn", process_group_backend="gloo")
    if private:
        strategy = DPStrategy(
            noise_multiplier=1.0, self_check=False, start_method="spawn", process_group_backend="gloo"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        Trainer(
            strategy=strategy, accelerator="cpu", devices=ranks, max_steps=STEPS, callbacks=[Clock(path)], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Net(), loader)  # fmt: skip
        return float(path.read_text())


def main() -> None:
    """Prints the table."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    speedups = {}
    for private in (False, True):
        one, two = seconds_a_step(private, 1), seconds_a_step(private, 2)
        speedups[private] = one / two
        print(f"{'private' if private else 'plain':8s} {1e3 * one:7.1f} ms with one rank, {1e3 * two:7.1f} ms with two")
        sys.stdout.flush()
    print(f"speed-up of private over that of plain: {speedups[True] / speedups[False]:.2f}")


if __name__ == "__main__":
    main()

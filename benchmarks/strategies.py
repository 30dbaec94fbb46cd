"""What a step costs under each strategy: the CNN of the step benchmark through a Trainer, with and without privacy.

    python -m benchmarks.strategies

Every strategy trains the same network on the same data; the table gives the median time of a training step (forward and
backward passes, noise, optimizer and callbacks, without fetching the data), relative to training without privacy. What happens
once is given apart: the self-check, the calibration of the noise, the release of NeuralDP.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import NETWORKS
from lightning_dp import BAMStrategy, DPStrategy, LangevinStrategy, NeuralDPStrategy

BATCH, STEPS, WARM_UP, PHYSICAL = 256, 40, 5, 64

STRATEGIES: dict[str, Callable[[], Any]] = {
    "without privacy": lambda: "auto",
    "DPStrategy": lambda: DPStrategy(eps=8),
    f"DPStrategy, physical batches of {PHYSICAL}": lambda: DPStrategy(eps=8, physical_batch_size=PHYSICAL),
    "LangevinStrategy": lambda: LangevinStrategy(eps=8),
    "BAMStrategy": lambda: BAMStrategy(eps=8),
    f"BAMStrategy, physical batches of {PHYSICAL}": lambda: BAMStrategy(eps=8, physical_batch_size=PHYSICAL),
    "BAMStrategy, direction='previous'": lambda: BAMStrategy(eps=8, direction="previous"),
    "NeuralDPStrategy": lambda: NeuralDPStrategy(eps=8, labels="public"),
}


class Net(LightningModule):
    """The benchmark's CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NETWORKS["cnn"].build()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(Callback):
    """Seconds of every step, from the batch's arrival to the end of the optimizer's step; and of the start of training."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.start = 0.0
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts a step's clock."""
        if not self.steps:
            self.start = time.perf_counter() - self.begin
        self.steps.append(-time.perf_counter())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops it."""
        self.steps[-1] += time.perf_counter()


def run(strategy: Any) -> Clock:
    """Trains for a few steps."""
    generator = torch.Generator().manual_seed(0)
    n = BATCH * STEPS
    x, y = torch.randn(n, 1, 28, 28, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    clock = Clock()
    trainer = Trainer(
        strategy=strategy, callbacks=[clock], max_steps=STEPS, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True))
    return clock


def measure(name: str) -> tuple[float, float]:
    """Milliseconds of a step and seconds to the first one, in this process."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    run("auto")  # the libraries' own first time
    clock = run(STRATEGIES[name]())
    return 1e3 * statistics.median(clock.steps[WARM_UP:]), clock.start


def main() -> None:
    """Prints the table. Each strategy runs in processes of its own, since memory that one leaves behind slows the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for _ in range(arguments.rounds):
        for name, figures in found.items():
            command = [sys.executable, "-m", "benchmarks.strategies", "--one", name]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            figures.append(tuple(json.loads(lines[-1])))
    steps = {name: statistics.median(step for step, _ in figures) for name, figures in found.items()}
    plain, private = steps["without privacy"], steps["DPStrategy"]
    print(
        f"CNN, batch {BATCH}, torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    print(
        f"{'strategy':44s} {'ms a step':>10s} {'spread':>13s} {'of plain':>9s} {'of DP-SGD':>10s} {'s to start':>11s}"
    )
    for name, step in steps.items():
        spread = f"{min(s for s, _ in found[name]):.1f}-{max(s for s, _ in found[name]):.1f}"
        start = statistics.median(start for _, start in found[name])
        print(f"{name:44s} {step:10.1f} {spread:>13s} {step / plain:9.2f} {step / private:10.2f} {start:11.2f}")


if __name__ == "__main__":
    main()

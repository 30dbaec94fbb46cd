"""What privacy costs outside the step: drawing, charging, logging, checking, calibrating, as shares of an epoch of 100 steps.

    python -m benchmarks.outside_step

Trains the CNN of the step benchmark for some epochs through a Trainer, with a clock round each of the parts that a plain run
does not have.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import NETWORKS
from lightning_dp import DPStrategy, PrivacyAccountant
from lightning_dp.sampling.samplers import PoissonSampler
from lightning_dp.strategies.budget import Budget

STEPS, BATCH, EPOCHS = 100, 256, 3

EVERY_STEP: dict[str, tuple[type, str]] = {
    "drawing the batch": (PoissonSampler, "draw"),
    "charging the ledger": (Budget, "charge"),
    "is there budget left": (Budget, "may_step"),
    "eps for the progress bar and loggers": (PrivacyAccountant, "on_train_batch_end"),
}
ONCE: dict[str, tuple[type, str]] = {
    "calibrating the noise, planning": (Budget, "settle"),
    "starting: self-check and announcement": (DPStrategy, "on_train_start"),
    "eps at the end": (PrivacyAccountant, "on_train_end"),
}
EPOCH = (_TrainingEpochLoop, "advance")


def clocked(spent: Counter[str], owner: type, name: str) -> None:
    """Adds up the seconds inside a method. A benchmark may patch; the package does not."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[f"{owner.__name__}.{name}"] += time.perf_counter() - start

    setattr(owner, name, outer)


class Net(LightningModule):
    """The benchmark's CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NETWORKS["cnn"].build()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    """Prints the table."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    n = STEPS * BATCH
    loader = DataLoader(TensorDataset(torch.randn(n, 1, 28, 28), torch.randint(0, 10, (n,))), batch_size=BATCH)
    trainer = Trainer(
        strategy=DPStrategy(eps=8), callbacks=[PrivacyAccountant()], max_epochs=EPOCHS, accelerator="cpu", devices=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    spent: Counter[str] = Counter()
    for owner, name in [*EVERY_STEP.values(), *ONCE.values(), EPOCH]:
        clocked(spent, owner, name)
    trainer.fit(Net(), loader)
    seconds = {key: spent[f"{key[0].__name__}.{key[1]}"] for key in [*EVERY_STEP.values(), *ONCE.values(), EPOCH]}
    epoch = seconds[EPOCH] / EPOCHS
    print(f"an epoch of {STEPS} steps: {epoch:.2f} s, torch {torch.__version__}, {torch.get_num_threads()} threads")
    total = 0.0
    for what, key in EVERY_STEP.items():
        share = seconds[key] / EPOCHS / epoch
        total += share
        print(f"  {what:40s} {1e3 * seconds[key] / EPOCHS:8.1f} ms an epoch  {share:7.2%}")
    print(f"  {'every step, together':40s} {'':19s}  {total:7.2%}")
    for what, key in ONCE.items():
        print(f"  {what:40s} {1e3 * seconds[key]:8.1f} ms a run")


if __name__ == "__main__":
    main()

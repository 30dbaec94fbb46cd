"""What privacy costs outside the step: drawing, charging, logging, checking, calibrating, as shares of an epoch of 100 steps.

    python -m benchmarks.outside_step

Trains the CNN of the step benchmark for two epochs through a Trainer under a profiler, and adds up the time inside the parts
that a plain run does not have. The profiler slows Python down, and with it these parts more than the step: the shares are
upper bounds.
"""

from __future__ import annotations

import cProfile
import logging
import pstats
import warnings

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import NETWORKS
from lightning_dp import DPStrategy, PrivacyAccountant

STEPS, BATCH, EPOCHS = 100, 256, 2

EVERY_STEP = {
    "drawing the batch": ("samplers.py", "draw"),
    "charging the ledger": ("budget.py", "charge"),
    "is there budget left": ("budget.py", "may_step"),
    "eps for the progress bar and loggers": ("accountant.py", "on_train_batch_end"),
}
ONCE = {
    "calibrating the noise, planning": ("budget.py", "settle"),
    "self-check": ("selfcheck.py", "check_module"),
    "eps at the end": ("accountant.py", "on_train_end"),
}


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
    profiler = cProfile.Profile()
    profiler.runcall(trainer.fit, Net(), loader)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    spent = {key: sum(v[3] for (path, _, name), v in stats.items() if path.endswith(key[0]) and name == key[1])
             for key in [*EVERY_STEP.values(), *ONCE.values()]}  # fmt: skip
    epoch = sum(
        v[3] for (path, _, name), v in stats.items() if path.endswith("training_epoch_loop.py") and name == "advance"
    )
    epoch /= EPOCHS
    print(f"an epoch of {STEPS} steps: {epoch:.2f} s, torch {torch.__version__}, {torch.get_num_threads()} threads")
    total = 0.0
    for what, key in EVERY_STEP.items():
        share = spent[key] / EPOCHS / epoch
        total += share
        print(f"  {what:40s} {1e3 * spent[key] / EPOCHS:8.1f} ms an epoch  {share:7.2%}")
    print(f"  {'every step, together':40s} {'':19s}  {total:7.2%}")
    for what, key in ONCE.items():
        print(f"  {what:40s} {1e3 * spent[key]:8.1f} ms a run")


if __name__ == "__main__":
    main()

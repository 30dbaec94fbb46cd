"""What monitors add to a validation epoch of the CNN: the time inside their hooks over that of the epoch without it.

    python -m benchmarks.monitors

10,000 images in batches of 256, ten classes, groups by sex and three ages. Clocked round each hook, so that the noise of the
machine is in both numbers alike; the median of several epochs.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import NETWORKS
from lightning_dp import CalibrationMonitor, FairnessMonitor, Groups, Predictions

IMAGES, BATCH, EPOCHS = 10_000, 256, 5
GROUPS = Groups({"sex": ["female", "male"], "age": ["<40", "40-60", ">60"]})
SEX = Groups({"sex": ["female", "male"]})
BATCH_HOOKS, END_HOOKS = ("on_validation_batch_end",), ("on_validation_epoch_start", "on_validation_epoch_end")


class Module(LightningModule):
    """The CNN of the step benchmark."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NETWORKS["cnn"].build()

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        """What the monitors read."""
        x, y, groups = batch
        logits = self.net(x)
        self.log("val/loss", F.cross_entropy(logits, y))
        return {"logits": logits, "target": y, "groups": groups}

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Of no interest here."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Leaves the weights as they are."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Clock(Callback):
    """Seconds between the start and the end of a validation."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.seconds: list[float] = []
        self.parts: list[dict[str, float]] = []
        self.spent = spent
        self._start = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts."""
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops."""
        self.seconds.append(time.perf_counter() - self._start)
        self.parts.append({name: self.spent[name] for name in (*BATCH_HOOKS, *END_HOOKS)})
        self.spent.clear()


def clocked(monitor: Callback, spent: dict[str, float]) -> Callback:
    """The monitor, with a clock round its hooks."""

    def timed(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return run

    for name in (*BATCH_HOOKS, *END_HOOKS):
        setattr(monitor, name, timed(name, getattr(monitor, name)))
    return monitor


def measure(make: Callable[[], Callback], loader: DataLoader[Any]) -> tuple[float, float, float]:
    """Seconds of an epoch without the monitor's hooks, in its batch hooks, and in its hooks at start and end."""
    plain, batches, ends = [], [], []
    spent: dict[str, float] = defaultdict(float)
    clock = Clock(spent)
    trainer = Trainer(
        callbacks=[clock, clocked(make(), spent)],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        max_epochs=EPOCHS + 1,
        limit_train_batches=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), loader, loader)
    for whole, parts in zip(clock.seconds[1:], clock.parts[1:], strict=True):  # the first one warms up
        batches.append(sum(parts[name] for name in BATCH_HOOKS))
        ends.append(sum(parts[name] for name in END_HOOKS))
        plain.append(whole - batches[-1] - ends[-1])
    return statistics.median(plain), statistics.median(batches), statistics.median(ends)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (IMAGES,), generator=generator)
    groups = torch.stack([torch.randint(0, k, (IMAGES,), generator=generator) for k in (2, 3)], 1)
    loader = DataLoader(TensorDataset(x, y, groups), batch_size=BATCH)
    monitors: dict[str, Callable[[], Callback]] = {
        "CalibrationMonitor, no groups": lambda: CalibrationMonitor(
            "multiclass", 10, extract=lambda outputs, batch: _without_groups(outputs)
        ),
        "CalibrationMonitor, 6 groups": lambda: CalibrationMonitor("multiclass", 10, groups=GROUPS),
        "FairnessMonitor, 2 groups": lambda: FairnessMonitor(
            SEX, "multiclass", 10, extract=lambda outputs, batch: _by_sex(outputs)
        ),
        "FairnessMonitor, 6 groups": lambda: FairnessMonitor(GROUPS, "multiclass", 10),
        "FairnessMonitor, 6 groups, everything logged": lambda: FairnessMonitor(GROUPS, "multiclass", 10, log=["all"]),
    }
    print(f"{'monitor':<50} {'epoch':>9} {'batches':>9} {'ends':>9} {'added':>7}")
    for name, make in monitors.items():
        plain, batches, ends = measure(make, loader)
        added = (batches + ends) / plain
        print(
            f"{name:<50} {plain * 1e3:>6.0f} ms {batches * 1e3:>6.1f} ms {ends * 1e3:>6.1f} ms {added:>7.1%}",
            flush=True,
        )


def _by_sex(outputs: Any) -> Predictions:
    return Predictions(outputs["target"], logits=outputs["logits"], groups=outputs["groups"][:, 0])


def _without_groups(outputs: Any) -> Predictions:
    return Predictions(outputs["target"], logits=outputs["logits"])


if __name__ == "__main__":
    main()

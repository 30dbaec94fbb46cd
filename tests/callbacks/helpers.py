"""Data with groups, a module that returns what monitors read, and a quiet Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.metrics import Groups

FEATURES, CLASSES, N = 5, 3, 53
GROUPS = Groups({"sex": ["female", "male"], "age": ["young", "old"]})


def samples(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and the two attributes as columns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    return x, y, torch.randint(0, 2, (n, 2), generator=generator)


def loader(n: int = N, batch_size: int = 8, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples(n, seed)), batch_size=batch_size)


def network(seed: int = 1, classes: int = CLASSES) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, classes, bias=False))
    for parameter in net.parameters():
        parameter.data.mul_(3)  # decided enough that every class is predicted
    return net


class Grouped(LightningModule):
    """Returns the agreed keys; `returns` changes what a step gives."""

    def __init__(self, net: nn.Module | None = None, returns: Any = None) -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.returns = returns

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x, y, groups = batch
        found = {"logits": self(x), "target": y, "groups": groups}
        return found if self.returns is None else self.returns(found)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trainer(*callbacks: Any, root: Path | None = None, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
        "default_root_dir": root,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **arguments})

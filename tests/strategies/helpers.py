"""A tiny module, a tiny data set and a quiet Trainer: what every strategy test needs, and nothing random in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy

FEATURES, CLASSES = 6, 3


def dataset(n: int = 64, seed: int = 0) -> TensorDataset:
    """`n` points that a small network can learn, no two alike, classes mixed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    w = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    return TensorDataset(x, (x @ w).argmax(1))


def loader(n: int = 64, batch_size: int = 16, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(dataset(n), batch_size=batch_size, shuffle=True, **arguments)


def network(hidden: int = 8) -> nn.Sequential:
    """The same weights on every call, without touching the caller's random stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))


class Tiny(LightningModule):
    """A classifier that counts what is asked of it."""

    def __init__(
        self,
        *,
        lr: float = 0.5,
        momentum: float = 0.0,
        net: nn.Module | None = None,
        optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    ) -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.lr, self.momentum, self.optimizer = lr, momentum, optimizer
        self.sizes: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.sizes.append(len(y))
        return self.loss(x, y)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer is not None:
            return self.optimizer(parameters)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)


def strategy(**arguments: Any) -> DPStrategy:
    """Noise multiplier 1 unless a budget or another noise is given."""
    if "eps" not in arguments:
        arguments.setdefault("noise_multiplier", 1.0)
    return DPStrategy(**arguments)


def trainer(plugin: Any, **arguments: Any) -> Trainer:
    """One CPU process, nothing printed, nothing written."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 2,
    }
    return Trainer(strategy=plugin, **{**quiet, **arguments})


def fit(module: LightningModule, plugin: Any, data: Any = None, *, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    """Fits and returns the Trainer."""
    run = trainer(plugin, **arguments)
    run.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return run


def flat(module: nn.Module) -> Tensor:
    """All parameters as one vector, copied."""
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def hooks(module: nn.Module) -> list[str]:
    """Every hook on a module, its children or its parameters."""
    found = []
    for name, child in module.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found += [f"{name}.{kind}" for _ in getattr(child, kind)]
    for name, parameter in module.named_parameters():
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found += [f"{name}.{kind}" for _ in getattr(parameter, kind) or ()]
    return found

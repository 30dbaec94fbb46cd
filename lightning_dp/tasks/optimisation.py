"""The optimizers and schedules that tasks offer by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from lightning_dp.errors import PrivacyConfigError

__all__ = ("Optimisation", "OptimizerName", "ScheduleName", "unchanged")

OptimizerName: TypeAlias = Literal["sgd", "adam", "nadam"]
ScheduleName: TypeAlias = Literal["constant", "cosine", "log_linear"]


@dataclass(frozen=True)
class Optimisation:
    """An optimizer with its learning rate and schedule; both see only the private gradient.

    Args:
        lr: learning rate (peak, if scheduled).
        momentum: momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``.
        lr_schedule: ``"constant"``; ``"cosine"`` from ``lr`` to 0 over the planned steps; or ``"log_linear"``, from ``lr`` to a
            tenth of it by equal factors, and once more over the second half of the steps.

    Raises:
        PrivacyConfigError: for an unknown name.
    """

    lr: float
    momentum: float
    optimizer: OptimizerName
    lr_schedule: ScheduleName

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam", "nadam"):
            raise PrivacyConfigError(f"optimizer={self.optimizer!r} is unknown; choose 'sgd', 'adam' or 'nadam'.")
        if self.lr_schedule not in ("constant", "cosine", "log_linear"):
            raise PrivacyConfigError(
                f"lr_schedule={self.lr_schedule!r} is unknown; choose 'constant', 'cosine' or 'log_linear'."
            )

    def of(self, module: LightningModule, slow: nn.Module | None = None, factor: float = 1.0) -> OptimizerLRScheduler:
        """What ``configure_optimizers`` returns; a schedule is stepped after every logical step.

        Args:
            module: whose parameters are trained.
            slow: a part of it that is trained at ``factor`` times the learning rate.
            factor: see there.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        apart = set() if slow is None else set(slow.parameters())
        groups = [{"params": [p for p in trained if p not in apart], "lr": self.lr}]
        if slowed := [p for p in trained if p in apart]:
            groups.append({"params": slowed, "lr": self.lr * factor})
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.NAdam
            optimizer = kind(groups, lr=self.lr, betas=(self.momentum, 0.999))
        if self.lr_schedule == "constant":
            return optimizer
        steps = int(module.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.lr_schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        else:
            half = max(-(-steps // 2), 1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step % half / half))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def unchanged(epoch: int) -> float:
    """The factor 1 on a learning rate in every epoch.

    For ``BackboneFinetuning(lambda_func=unchanged)`` of Lightning, which doubles the backbone's learning rate every epoch
    unless it is told otherwise.
    """
    return 1.0

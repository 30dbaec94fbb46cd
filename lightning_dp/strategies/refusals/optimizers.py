"""Refusals about optimizers and schedulers, asked once they are configured."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch.optim import lr_scheduler

from lightning_dp.strategies.refusals.table import Subject, callbacks_of, listed, names_training, row


@row("optimizers")
def several_optimizers(s: Subject) -> str | None:
    # Lightning puts a stand-in where configure_optimizers returned None.
    number = sum(type(o).__name__ != "_MockOptimizer" for o in s.optimizers)
    if number != 1 and (s.module.automatic_optimization or number == 0):
        return (
            f"configure_optimizers returned {number} optimizers; a private step accounts for exactly one. Use "
            "one optimizer with several parameter groups."
        )
    return None


@row("optimizers")
def closure_optimizers(s: Subject) -> str | None:
    if any(isinstance(o, torch.optim.LBFGS) for o in s.optimizers):
        return (
            "LBFGS evaluates the loss several times in one step, each time on private data. Use a first-order "
            "optimizer such as SGD or Adam."
        )
    return None


@row("optimizers")
def foreign_parameters(s: Subject) -> str | None:
    own = {id(p) for p in s.module.parameters()}
    foreign = sum(id(p) not in own for o in s.optimizers for g in o.param_groups for p in g["params"])
    if foreign:
        return (
            f"the optimizer holds {foreign} parameters that are not part of the LightningModule; their gradients would be "
            "neither clipped nor noised. Assign the object that owns them to an attribute of the module."
        )
    return None


@row("optimizers")
def scheduler_monitors(s: Subject) -> str | None:
    monitors = [c.monitor for c in s.trainer.lr_scheduler_configs if c.reduce_on_plateau]
    watched = [m for m in monitors if isinstance(m, str) and names_training(m)]
    if watched:
        return (
            f"a learning-rate scheduler monitors {listed(watched)}, a number computed from training data without "
            "noise, and the learning rate shows what it was. Monitor a metric of held-out data (val_...), or use a "
            "scheduler that follows the step count."
        )
    return None


@row("optimizers")
def scheduler_of_fixed_groups(s: Subject) -> str | None:
    found = callbacks_of(s, BaseFinetuning)
    kinds = (lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR)
    fixed = [type(c.scheduler).__name__ for c in s.trainer.lr_scheduler_configs if isinstance(c.scheduler, kinds)]
    if found and fixed:
        return (
            f"{listed(fixed)} has one function for each parameter group that there is at the start, and stops with an error, "
            f"in the middle of the run and of its budget, when {listed(found)} adds a group. Use a scheduler that computes "
            "from the current rates (CosineAnnealingLR, StepLR, ...), or none."
        )
    return None

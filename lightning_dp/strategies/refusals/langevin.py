"""Refusals of Langevin dynamics, whose law holds for plain steps of one size only."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import BaseFinetuning

from lightning_dp.strategies.refusals.table import Subject, callbacks_of, row

ONE_CHAIN = (
    "the samples of a chain are draws of the same parameters, and a sample from before the change cannot stand beside the "
    "values that others took since. Choose what is trained before fit (requires_grad_(False) when the module is built, or "
    "two fits of two strategies), or use DPStrategy, where parts may be unfrozen at any epoch."
)


@row("trainer")
def langevin_finetuning(s: Subject) -> str | None:
    found = callbacks_of(s, BaseFinetuning) if s.langevin else []
    return f"{', '.join(found)} changes what is trained during the run: {ONE_CHAIN}" if found else None


@row("module")
def langevin_manual_optimization(s: Subject) -> str | None:
    if s.langevin and not s.module.automatic_optimization:
        return (
            "LangevinStrategy ties one learning rate to the noise of one optimizer, and with automatic_optimization=False the "
            "module decides what is stepped when. Use automatic optimisation, or DPStrategy."
        )
    return None


@row("optimizers")
def langevin_optimizer(s: Subject) -> str | None:
    found = [reason for o in s.optimizers if s.langevin and (reason := _why_not_plain(o))]
    if found:
        return (
            f"the optimizer is {found[0]}. Langevin dynamics needs the plain step -lr * (gradient + noise): momentum adds up "
            "the noise of many steps and preconditioning rescales it, so that neither has the temperature of the law. Use "
            "torch.optim.SGD(parameters, lr=...) without momentum, or DPStrategy, where any optimizer will do."
        )
    return None


@row("optimizers")
def langevin_parameter_groups(s: Subject) -> str | None:
    rates = sorted({float(g["lr"]) for o in s.optimizers for g in o.param_groups}) if s.langevin else []
    if len(rates) > 1:
        return (
            f"the parameter groups have different learning rates ({', '.join(f'{rate:g}' for rate in rates)}), so each would "
            "have a temperature of its own, and the chain no stationary distribution that anybody could name. Use one "
            "learning rate; weight_decay may differ."
        )
    return None


@row("optimizers")
def langevin_schedulers(s: Subject) -> str | None:
    if s.fixes_learning_rate and s.trainer.lr_scheduler_configs:
        return (
            "temperature (or learning_rate) fixes the size of every step, and a learning-rate scheduler moves it. Remove the "
            "scheduler, or give LangevinStrategy neither: the temperature then follows the scheduler and is reported."
        )
    return None


def _why_not_plain(optimizer: torch.optim.Optimizer) -> str | None:
    if type(optimizer) is not torch.optim.SGD:
        return type(optimizer).__name__
    for name in ("momentum", "dampening", "nesterov", "maximize"):
        values = [group[name] for group in optimizer.param_groups if group[name]]
        if values:
            return f"SGD with {name}={values[0]!r}"
    return None

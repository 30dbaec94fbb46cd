"""The table of refusals and what its rows look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch import callbacks

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients.clipping import fits

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = (
    "REFUSALS",
    "Phase",
    "Refusal",
    "Subject",
    "callbacks_of",
    "listed",
    "modules_of",
    "names_training",
    "refuse",
    "row",
)

Phase = Literal["trainer", "module", "optimizers"]


@dataclass(frozen=True)
class Subject:
    """What the refusals look at."""

    trainer: Trainer
    module: LightningModule
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    calibrates: bool = False
    splits: bool = False
    adapts: bool = False
    post_processing: tuple[str, ...] = ()
    ascends: bool = False
    langevin: bool = False
    fixes_learning_rate: bool = False

    def declared(self) -> list[str]:
        """Names of the parameters that are declared to be trained by post-processing."""
        named = [name for name, _ in self.module.named_parameters()]
        return [name for name in named if any(fits(name, pattern) for pattern in self.post_processing)]


Check = Callable[[Subject], str | None]
"""Returns the message of a refusal, or ``None`` if the subject is fine."""


@dataclass(frozen=True)
class Refusal:
    """One row of the table."""

    name: str
    phase: Phase
    check: Check


REFUSALS: list[Refusal] = []


def refuse(phase: Phase, subject: Subject) -> None:
    """Raises PrivacyConfigError with every refusal of ``phase`` that applies, so that all can be mended at once."""
    messages = [message for row in REFUSALS if row.phase == phase and (message := row.check(subject))]
    if messages:
        raise PrivacyConfigError("\n".join(messages))


def row(phase: Phase) -> Callable[[Check], Check]:
    """Enters a check in the table under its function's name."""

    def add(check: Check) -> Check:
        REFUSALS.append(Refusal(check.__name__, phase, check))
        return check

    return add


def callbacks_of(s: Subject, *kinds: type[callbacks.Callback]) -> list[str]:
    """Names of the Trainer's callbacks of some kinds."""
    return [type(c).__name__ for c in s.trainer.callbacks if isinstance(c, kinds)]  # type: ignore[attr-defined]


def modules_of(s: Subject, *kinds: type) -> list[str]:
    """Paths and classes of the module's parts of some kinds."""
    return [f"{name} ({type(m).__name__})" for name, m in s.module.named_modules() if isinstance(m, kinds)]


def listed(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def names_training(monitor: str) -> bool:
    """Whether a metric's name says that it is computed from training data."""
    return any(monitor == word or monitor.startswith((f"{word}_", f"{word}/")) for word in ("train", "training"))

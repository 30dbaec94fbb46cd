"""A wrong argument's name, answered with the right one: most come from another library's interface."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

__all__ = ("named_arguments",)

P = ParamSpec("P")

ELSEWHERE = {
    "batch_size": "the expected batch size is the DataLoader's; physical_batch_size bounds what is held at once",
    "expected_batch_size": "the expected batch size is the DataLoader's",
    "max_physical_batch_size": "it is called physical_batch_size",
    "sample_rate": "the rate is the DataLoader's batch size over the number of units",
    "epsilon": "it is called eps",
    "target_epsilon": "it is called eps",
    "target_delta": "it is called delta",
    "epochs": "the noise is calibrated to the Trainer's max_epochs or max_steps",
    "steps": "the noise is calibrated to the Trainer's max_epochs or max_steps",
    "clip": "the bound is called max_grad_norm",
    "clip_norm": "the bound is called max_grad_norm",
    "l2_norm_clip": "the bound is called max_grad_norm",
    "max_norm": "the bound is called max_grad_norm",
    "gradient_clip_val": "the bound on each unit's gradient is called max_grad_norm",
    "max_per_sample_grad_norm": "the bound is called max_grad_norm",
    "noise": "its standard deviation over max_grad_norm is called noise_multiplier",
    "noise_scale": "its standard deviation over max_grad_norm is called noise_multiplier",
    "sigma": "noise over bound is called noise_multiplier",
    "poisson_sampling": "say sampling='poisson', the default, or sampling='shuffle'",
    "grad_sample_mode": "the engine chooses each layer's route by itself",
    "secure_mode": "noise is always drawn from generators seeded by the operating system",
    "secure_rng": "noise is always drawn from generators seeded by the operating system",
    "noise_generator": "noise is always drawn from generators seeded by the operating system",
    "module": "the network and its optimizers come from the LightningModule",
    "model": "the network and its optimizers come from the LightningModule",
    "optimizer": "the network and its optimizers come from the LightningModule",
    "data_loader": "the data comes from Trainer.fit",
    "devices": "that is an argument of the Trainer",
    "precision": "that is an argument of the Trainer",
}
"""What others call a setting, or have as one, and where it is here."""


def named_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Wraps an ``__init__`` so that Python's TypeError for an unknown keyword says what the argument is called.

    The signature stays what it was, for type checkers, editors, ``inspect`` and command lines alike.
    """
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            owner = type(args[0]).__name__
            raise TypeError("; ".join(_explained(owner, name, names) for name in unknown))
        init(*args, **kwargs)

    return checked


def _explained(owner: str, name: str, names: list[str]) -> str:
    hint = ELSEWHERE.get(name)
    if hint is None:
        close = difflib.get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
    return f"{owner} has no argument {name}: {hint}"

"""Repeating a recorded call: with the random numbers it drew, and with a look at whether it came out the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ("RandomState", "Randomness", "reproduces")


@dataclass(frozen=True)
class RandomState:
    """The state of the generators that a layer on ``device`` draws from, before it drew.

    Attributes:
        device: the layer's.
        host: the CPU generator's state.
        accelerator: the device's own generator's state, or ``None``.
        autocast: whether the call ran under autocast: its outputs may then carry fewer digits than their type says.
    """

    device: torch.device
    host: Tensor
    accelerator: Tensor | None
    autocast: bool = False

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The state now."""
        accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), accelerator, torch.is_autocast_enabled(device.type))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the block the same numbers are drawn again; afterwards the generators go on as if nothing had been."""
        with torch.random.fork_rng([self.device] if self.accelerator is not None else []):
            torch.set_rng_state(self.host)
            if self.accelerator is not None:
                torch.cuda.set_rng_state(self.accelerator, self.device)
            yield


@dataclass(frozen=True)
class Randomness:
    """The state of every generator that a training step may draw from: PyTorch's, NumPy's and Python's own."""

    torch_state: RandomState
    numpy_state: Any
    python_state: Any

    @classmethod
    def capture(cls, device: torch.device) -> Randomness:
        """The state now."""
        return cls(RandomState.capture(device), np.random.get_state(), random.getstate())

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the block the same numbers are drawn again; afterwards the generators go on as if nothing had been."""
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            np.random.set_state(self.numpy_state)
            random.setstate(self.python_state)
            with self.torch_state.replayed():
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def reproduces(result: Tensor, recorded: Tensor, low_precision: bool = False) -> bool:
    """Whether a repeated output ``(U, ...)`` is the recorded one, unit by unit, to rounding."""
    if result.shape != recorded.shape:
        return False
    if recorded.numel() == 0:
        return True
    finite = torch.isfinite(recorded) & torch.isfinite(result)
    largest = torch.where(finite, recorded.abs(), 0.0).flatten(1).amax(1)
    difference = torch.where(finite, (result - recorded).abs(), 0.0).flatten(1).amax(1)
    # One scale a unit: a single unit with huge values must not switch the check off for the others. The median keeps a
    # unit whose own output happens to vanish from being held to its rounding errors.
    scale = torch.maximum(largest, largest.median()).clamp_min(1e-30)
    tolerance = 5e-2 if low_precision or recorded.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((difference <= tolerance * scale).all())

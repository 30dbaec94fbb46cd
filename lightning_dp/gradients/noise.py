"""Gaussian noise from generators of its own."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

__all__ = ("NoiseSource",)


class NoiseSource:
    """Adds Gaussian noise from a generator that nobody else seeds, reads or saves.

    **Guarantee**: without ``seed`` the generator starts from the operating system's entropy (256 bits on CPU, 64 on
    other devices), never from ``seed_everything`` and never from a checkpoint: whoever knows the seed subtracts the
    noise. On CPU NumPy's generator is used because PyTorch's own keeps only 32 bits of a seed, few enough to try them
    all. The samples are ordinary floating-point Gaussians; attacks on the rounding of floats are outside the
    guarantee, as in every float32 implementation of DP-SGD.

    Args:
        seed: for tests only. Noise from a known seed protects nobody.
        rank: ranks with the same test seed draw different noise.
    """

    def __init__(self, seed: int | None = None, rank: int = 0) -> None:
        self.seed, self.rank = seed, rank
        entropy = secrets.randbits(256) if seed is None else (seed, rank)
        self._host = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))
        self._device: dict[torch.device, torch.Generator] = {}

    def add_(self, tensor: Tensor, std: float) -> Tensor:
        """Adds independent N(0, std^2) to every element of a contiguous float32 or float64 tensor, in place."""
        if std == 0 or tensor.numel() == 0:
            return tensor
        if tensor.device.type == "cpu":
            dtype = np.float64 if tensor.dtype == torch.float64 else np.float32
            noise = torch.from_numpy(self._host.standard_normal(tensor.numel(), dtype=dtype)).view_as(tensor)
        else:
            noise = torch.empty_like(tensor).normal_(generator=self._generator(tensor.device))
        return tensor.add_(noise, alpha=std)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._device:
            generator = torch.Generator(device=device)
            generator.manual_seed(int(self._host.integers(0, 2**63, dtype=np.int64)))
            self._device[device] = generator
        return self._device[device]

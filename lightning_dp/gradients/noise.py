"""Gaussian noise from generators of its own."""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from torch import Tensor

__all__ = ("NoiseSource",)

RADIUS_BITS = 40  # of 64; the rest are the angle's
RADIUS_MASK = (1 << RADIUS_BITS) - 1
CHUNK = 1 << 19  # samples made at a time


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
        self._bits = np.random.SFC64(np.random.SeedSequence(entropy))
        self._host = np.random.Generator(self._bits)
        self._device: dict[torch.device, torch.Generator] = {}
        self._floats, self._integers = torch.empty(3, 0), torch.empty(0, dtype=torch.int64)

    def add_(self, tensor: Tensor, std: float) -> Tensor:
        """Adds independent N(0, std^2) to every element of a contiguous float32 or float64 tensor, in place."""
        if std == 0 or tensor.numel() == 0:
            return tensor
        if tensor.device.type != "cpu":
            noise = torch.empty_like(tensor).normal_(generator=self._generator(tensor.device))
            return tensor.add_(noise, alpha=std)
        if tensor.dtype == torch.float64:
            return tensor.add_(torch.from_numpy(self._host.standard_normal(tensor.numel())).view_as(tensor), alpha=std)
        for part in torch.split(tensor.view(-1), CHUNK):
            self._add_float32(part, std)
        return tensor

    def uniform(self, count: int) -> Tensor:
        """Independent uniform numbers in [0, 1), float64, from the same generator."""
        return torch.from_numpy(self._host.random(count))

    def _add_float32(self, flat: Tensor, std: float) -> None:
        """Box and Muller's transform of 64 random bits for every two samples, in vector instructions on all cores.

        40 bits give the radius, so that samples reach 7.4 standard deviations: what is cut off has less than 1e-13 of the
        mass. PyTorch's own CPU sampler takes 24 bits and ends at 5.8, a tail that would show in delta over 10^4 steps.
        """
        pairs = (flat.numel() + 1) // 2
        words = torch.from_numpy(self._bits.random_raw(pairs).view(np.int64))
        radius, angle, cosine, integers = self._workspace(pairs)
        torch.bitwise_and(words, RADIUS_MASK, out=integers)
        radius.copy_(integers).add_(0.5).mul_(2.0**-RADIUS_BITS).log_().mul_(-2.0).sqrt_().mul_(std)
        torch.bitwise_right_shift(words, RADIUS_BITS, out=integers)
        angle.copy_(integers).mul_(2 * math.pi * 2.0 ** (RADIUS_BITS - 64))
        torch.cos(angle, out=cosine)
        first, second = flat[:pairs], flat[pairs:]
        first.addcmul_(radius, cosine)
        second.addcmul_(radius[: second.numel()], angle.sin_()[: second.numel()])

    def _workspace(self, pairs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Kept from step to step: fresh memory costs more than the arithmetic on it.
        if self._floats.shape[1] < pairs:
            self._floats, self._integers = torch.empty(3, pairs), torch.empty(pairs, dtype=torch.int64)
        radius, angle, cosine = self._floats[:, :pairs]
        return radius, angle, cosine, self._integers[:pairs]

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._device:
            generator = torch.Generator(device=device)
            generator.manual_seed(int(self._host.integers(0, 2**63, dtype=np.int64)))
            self._device[device] = generator
        return self._device[device]

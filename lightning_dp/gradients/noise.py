"""Gaussian noise from generators of its own."""

from __future__ import annotations

import math
import secrets

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ("NoiseSource",)

RADIUS_BITS = 40  # of 64; the rest are the angle's
RADIUS_MASK = (1 << RADIUS_BITS) - 1
BLOCK = 1 << 18  # samples made at a time
Floats = npt.NDArray[np.float32]


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
        self._floats: Floats = np.empty((3, 0), np.float32)
        self._integers: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add_(self, tensor: Tensor, std: float) -> Tensor:
        """Adds independent N(0, std^2) to every element of a contiguous float32 or float64 tensor, in place."""
        if std == 0 or tensor.numel() == 0:
            return tensor
        if tensor.device.type != "cpu":
            noise = torch.empty_like(tensor).normal_(generator=self._generator(tensor.device))
            return tensor.add_(noise, alpha=std)
        if tensor.dtype == torch.float64:
            return tensor.add_(torch.from_numpy(self._host.standard_normal(tensor.numel())).view_as(tensor), alpha=std)
        flat = tensor.view(-1)
        samples: Floats = flat.detach().numpy()
        for start in range(0, len(samples), BLOCK):
            self._add_block(samples[start : start + BLOCK], std)
        if not flat.is_inference():  # autograd's guard against changes in place does not see those of NumPy
            torch.autograd.graph.increment_version(flat)
        return tensor

    def uniform(self, count: int) -> Tensor:
        """Independent uniform numbers in [0, 1), float64, from the same generator."""
        return torch.from_numpy(self._host.random(count))

    def _add_block(self, samples: Floats, std: float) -> None:
        """Adds N(0, std^2) by Box and Muller's transform of 64 random bits for every two samples, in vector instructions.

        40 bits give the radius, so that samples reach 7.4 standard deviations: what is cut off has less than 1e-13 of the
        mass. PyTorch's own CPU sampler takes 24 bits and ends at 5.8, a tail that would show in delta over 10^4 steps.

        By NumPy's functions, which stay on one core: what one core has made and another reads has to be fetched from it, which
        took longer than the arithmetic that two share (measured: 2.8 ns a sample, and 6 by the library's on two cores).
        """
        pairs = (len(samples) + 1) // 2
        words = self._bits.random_raw(pairs).view(np.int64)
        if len(self._integers) < pairs:  # kept from step to step: fresh memory costs more than the arithmetic on it
            self._floats, self._integers = np.empty((3, pairs), np.float32), np.empty(pairs, np.int64)
        radius, angle, cosine = self._floats[:, :pairs]
        integers = self._integers[:pairs]
        np.copyto(radius, np.bitwise_and(words, RADIUS_MASK, out=integers), casting="unsafe")
        radius += np.float32(0.5)
        radius *= np.float32(2.0**-RADIUS_BITS)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        radius *= np.float32(std)
        np.copyto(angle, np.right_shift(words, RADIUS_BITS, out=integers), casting="unsafe")
        angle *= np.float32(2 * math.pi * 2.0 ** (RADIUS_BITS - 64))
        np.cos(angle, out=cosine)
        np.sin(angle, out=angle)
        cosine *= radius
        angle *= radius
        samples[:pairs] += cosine
        samples[pairs:] += angle[: len(samples) - pairs]

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._device:
            generator = torch.Generator(device=device)
            generator.manual_seed(int(self._host.integers(0, 2**63, dtype=np.int64)))
            self._device[device] = generator
        return self._device[device]

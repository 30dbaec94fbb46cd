"""Inner products of a convolution's patches from inner products of its pixels: no patch is copied.

The patch at an output position t is the input at t + o for every offset o of the kernel. So the Gram matrix of patches is a
sum of shifted Gram matrices of pixels, ``<patch_t, patch_s> = sum_o <x[t + o], x[s + o]>``, and the kernel's elements cost
additions where they would cost as many times the products. Offsets are summed axis by axis. For a stride of one: else
most pairs of pixels lie in no pair of patches at the same offset.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ("ADDITION", "by_position", "patch_gram", "pixel_gram_cost")

ADDITION = 16  # adding one element of a shifted matrix costs as much as this many multiply-adds (measured)


def pixel_gram_cost(pixels: int, channels: int, taps: int) -> float:
    """Multiply-adds for the Gram matrix of one unit's patches.

    Args:
        pixels: of a unit's inputs.
        channels: of each.
        taps: kernel elements along each axis, summed.
    """
    return float(pixels**2 * (channels + ADDITION * taps))


def patch_gram(
    x: Tensor, groups: int, out: torch.Size, kernel: tuple[int, ...], dilation: tuple[int, ...], padding: list[int]
) -> Tensor:
    """Inner products of all pairs of patches of each unit, zeros outside the input.

    Args:
        x: inputs ``(S, K, C, *spatial)`` of S units with K rows.
        groups: G groups of channels.
        out: the output's size.
        kernel: size of a patch.
        dilation: steps between its elements.
        padding: zeros on each side.

    Returns:
        ``(S * G, T, T)`` with ``T = K * prod(out)``.
    """
    units, rows, _, *sizes = x.shape
    pixels = by_position(x, groups)
    gram = torch.bmm(pixels.mT, pixels).view(-1, rows, *sizes, rows, *sizes)
    for axis, (size, length, taps, step, pad) in enumerate(zip(sizes, out, kernel, dilation, padding, strict=True)):
        gram = _along(gram, (2 + axis, 3 + axis + len(sizes)), size, length, [tap * step - pad for tap in range(taps)])
    return gram.reshape(units * groups, rows * torch.Size(out).numel(), -1)


def by_position(x: Tensor, groups: int) -> Tensor:
    """``(S, K, C, *spatial)`` as ``(S * G, C / G, K * prod(spatial))``: a view where K is 1."""
    units, rows, channels = x.shape[:3]
    split = x.reshape(units, rows, groups, channels // groups, -1).permute(0, 2, 3, 1, 4)
    return split.reshape(units * groups, channels // groups, -1)


def _along(gram: Tensor, axes: tuple[int, int], size: int, length: int, shifts: list[int]) -> Tensor:
    """``sum over shifts of gram[t + shift, s + shift]`` along two axes, for t and s below ``length``."""
    inside = [(shift, max(0, -shift), min(length, size - shift)) for shift in shifts]
    inside = [(shift, first, last) for shift, first, last in inside if first < last]

    def part(of: Tensor, first: int, last: int) -> Tensor:
        return of.narrow(axes[0], first, last - first).narrow(axes[1], first, last - first)

    whole = next(((s, a, b) for s, a, b in inside if b - a == length), None)
    if whole is None:
        shape = list(gram.shape)
        shape[axes[0]] = shape[axes[1]] = length
        total = gram.new_zeros(shape)
    else:
        inside.remove(whole)
        total = part(gram, whole[0], whole[0] + length)
        total = total.clone(memory_format=torch.contiguous_format) if inside else total
    for shift, first, last in inside:
        part(total, first, last).add_(part(gram, first + shift, last + shift))
    return total

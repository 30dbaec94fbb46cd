"""Inner products of a convolution's patches from inner products of its pixels: no patch is copied.

The patch at an output position t is the input at t + o for every offset o of the kernel. So the Gram matrix of patches is a
sum of shifted Gram matrices of pixels, ``<patch_t, patch_s> = sum_o <x[t + o], x[s + o]>``, and the kernel's elements cost
additions where they would cost as many times the products. Offsets are summed axis by axis.

With a stride of s, only pixels that lie a multiple of s apart meet at the same offset. Each such phase of the input is a
smaller input of a convolution of stride 1; phases that see equally many kernel elements are taken together as channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("by_position", "patch_gram", "pixel_gram_cost")

ADDITION, RUN = (
    16,
    100,
)  # adding an element of a shifted matrix costs ADDITION + RUN / length of a row multiply-adds (measured)

Sizes = Sequence[int]


def pixel_gram_cost(
    rows: int, channels: int, sizes: Sizes, out: Sizes, kernel: Sizes, stride: Sizes
) -> tuple[float, int]:
    """What the Gram matrix of one unit's patches takes.

    Args:
        rows: a unit's rows.
        channels: of each group.
        sizes: of the input.
        out: of the output.
        kernel: size of a patch.
        stride: steps between patches.

    Returns:
        Multiply-adds, and elements of the largest matrix.
    """
    cost, largest = 0.0, 0
    for taps, offsets in _phases(kernel, stride).items():
        lengths = sizes if max(stride) == 1 else [n + tap - 1 for n, tap in zip(out, taps, strict=True)]
        elements = (rows * math.prod(lengths)) ** 2
        cost += elements * (channels * len(offsets) + (ADDITION + RUN / lengths[-1]) * sum(taps))
        largest = max(largest, elements)
    return cost, largest


def patch_gram(
    x: Tensor, groups: int, out: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: Sizes
) -> Tensor:
    """Inner products of all pairs of patches of each unit, zeros outside the input.

    Args:
        x: inputs ``(S, K, C, *spatial)`` of S units with K rows.
        groups: G groups of channels.
        out: the output's size.
        kernel: size of a patch.
        stride: steps between patches; other than 1 only without dilation.
        dilation: steps between a patch's elements.
        padding: zeros on each side.

    Returns:
        ``(S * G, T, T)`` with ``T = K * prod(out)``.
    """
    if max(stride) == 1:
        return _of_stride_one(x, groups, out, kernel, dilation, padding)
    sizes = zip(x.shape[3:], out, kernel, stride, padding, strict=True)
    pads = [(pad, (n - 1) * s + k - size - pad) for size, n, k, s, pad in sizes]  # what no patch sees is cut off
    padded = F.pad(x.flatten(0, 1), [p for pair in reversed(pads) for p in pair])
    split = padded.view(*x.shape[:2], groups, -1, *padded.shape[2:])
    none = [0] * len(kernel)
    total: Tensor | None = None
    for taps, offsets in _phases(kernel, stride).items():
        parts = []
        for offset in offsets:
            part, places = split, zip(offset, out, taps, stride, strict=True)
            for axis, (o, n, tap, s) in enumerate(places):
                part = part[(slice(None),) * (4 + axis) + (slice(o, o + (n + tap - 2) * s + 1, s),)]
            parts.append(part)
        gram = _of_stride_one(torch.cat(parts, 3).flatten(2, 3), groups, out, taps, [1] * len(kernel), none)
        total = gram if total is None else total.add_(gram)
    assert total is not None
    return total


def by_position(x: Tensor, groups: int) -> Tensor:
    """``(S, K, C, *spatial)`` as ``(S * G, C / G, K * prod(spatial))``: a view where K is 1."""
    units, rows, channels = x.shape[:3]
    split = x.reshape(units, rows, groups, channels // groups, -1).permute(0, 2, 3, 1, 4)
    return split.reshape(units * groups, channels // groups, -1)


def _phases(kernel: Sizes, stride: Sizes) -> Mapping[tuple[int, ...], list[tuple[int, ...]]]:
    """Offsets of the phases of the input, by how many kernel elements along each axis they see."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for offset in itertools.product(*(range(min(s, k)) for s, k in zip(stride, kernel, strict=True))):
        taps = tuple(-((o - k) // s) for o, k, s in zip(offset, kernel, stride, strict=True))
        found.setdefault(taps, []).append(offset)
    return found


def _of_stride_one(x: Tensor, groups: int, out: Sizes, kernel: Sizes, dilation: Sizes, padding: Sizes) -> Tensor:
    units, rows, _, *sizes = x.shape
    pixels = by_position(x, groups)
    gram = torch.bmm(pixels.mT, pixels).view(-1, rows, *sizes, rows, *sizes)
    for axis, (size, length, taps, step, pad) in enumerate(zip(sizes, out, kernel, dilation, padding, strict=True)):
        gram = _along(gram, (2 + axis, 3 + axis + len(sizes)), size, length, [tap * step - pad for tap in range(taps)])
    return gram.reshape(units * groups, rows * math.prod(out), -1)


def _along(gram: Tensor, axes: tuple[int, int], size: int, length: int, shifts: list[int]) -> Tensor:
    """``sum over shifts of gram[t + shift, s + shift]`` along two axes, for t and s below ``length``."""
    inside = [(shift, max(0, -shift), min(length, size - shift)) for shift in shifts]
    inside = [(shift, first, last) for shift, first, last in inside if first < last]

    def part(of: Tensor, first: int, last: int) -> Tensor:
        return of.narrow(axes[0], first, last - first).narrow(axes[1], first, last - first)

    whole = next((each for each in inside if each[2] - each[1] == length), None)
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

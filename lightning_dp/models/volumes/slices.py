"""Volumes as slices: cut along the views, folded behind the batch axis, and what belongs to the slices split again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("AXES", "View", "axes_of", "check_volumes", "cut", "fold", "lengths_of", "split_by_axis")

View = Literal["all", "z", "x", "y"]

AXES: Mapping[str, int] = {"z": 2, "x": 3, "y": 4}
"""Axes of a batch of volumes ``(N, C, Z, X, Y)``, in the order in which their slices follow each other."""


def axes_of(views: View) -> tuple[str, ...]:
    """The axes along which volumes are cut.

    Raises:
        PrivacyConfigError: for anything but ``"all"``, ``"z"``, ``"x"`` and ``"y"``.
    """
    if views == "all":
        return tuple(AXES)
    if views not in AXES:
        raise PrivacyConfigError(f"views={views!r} is unknown; choose 'all', 'z', 'x' or 'y'.")
    return (views,)


def check_volumes(volumes: Tensor | Sequence[Tensor], channels: int, size: Sequence[int] | None = None) -> Tensor:
    """A batch ``(N, C, Z, X, Y)``, or the reason why it is none.

    Args:
        volumes: a batch, or volumes ``(C, Z, X, Y)`` to be stacked.
        channels: C.
        size: ``(Z, X, Y)``, where it is known.

    Raises:
        ValueError: for volumes of unequal size, another number of axes or of channels, or another size.
    """
    if not isinstance(volumes, Tensor):
        shapes = sorted({tuple(volume.shape) for volume in volumes})
        if len(shapes) != 1:
            raise ValueError(
                f"volumes of unequal size, {', '.join(map(str, shapes))}: the slices of a batch are shared out evenly over "
                "its volumes, so that all need one size. Bring them to it with lightning_dp.data.fit_volume(volume, size), "
                "or resample them."
            )
        volumes = torch.stack(list(volumes))
    if volumes.dim() != 5:
        hint = " Add the axis of channels: volumes.unsqueeze(1)." if volumes.dim() == 4 else ""
        raise ValueError(f"volumes of shape {tuple(volumes.shape)}; expected (N, C, Z, X, Y).{hint}")
    if volumes.shape[1] != channels:
        raise ValueError(
            f"volumes with {volumes.shape[1]} channels for a network with in_channels={channels}. Give the network "
            "in_channels of the data."
        )
    if size is not None and tuple(volumes.shape[2:]) != tuple(size):
        raise ValueError(
            f"volumes of size {tuple(volumes.shape[2:])} for a network with volume_size={tuple(size)}. Bring them to that "
            "size with lightning_dp.data.fit_volume(volume, size), or resample them."
        )
    return volumes


def lengths_of(volumes: Tensor, axes: Sequence[str]) -> dict[str, int]:
    """The number of slices along each axis."""
    return {axis: volumes.shape[AXES[axis]] for axis in axes}


def cut(volumes: Tensor, axes: Sequence[str], size: tuple[int, int] | None = None) -> list[Tensor]:
    """Slices ``(N, S, C, H, W)``: in one tensor where those of all axes have the same height and width, else one an axis.

    One tensor means one call of the network that follows, and that is cheaper.

    Args:
        volumes: ``(N, C, Z, X, Y)``.
        axes: along which to cut.
        size: height and width to which the slices are resampled (bilinear); ``None`` leaves them.
    """
    found = [volumes.movedim(AXES[axis], 1) for axis in axes]
    if size is not None:
        found = [_resized(slices, size) for slices in found]
    if len({slices.shape[3:] for slices in found}) == 1:
        return [torch.cat(found, 1)] if len(found) > 1 else found
    return found


def fold(slices: Tensor) -> Tensor:
    """``(N, S, ...)`` to ``(N * S, ...)``: all slices of the first volume, then all of the second.

    Volumes come first, so that the rows of a volume are neighbours: its slices are clipped together, as one privacy unit.
    """
    return slices.flatten(0, 1)


def split_by_axis(values: Tensor, lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """``(..., S)`` over the slices of all views, as ``(..., S_axis)`` for each."""
    return dict(zip(lengths, torch.split(values, list(lengths.values()), dim=-1), strict=True))


def _resized(slices: Tensor, size: tuple[int, int]) -> Tensor:
    if slices.shape[3:] == size:
        return slices
    n, s = slices.shape[:2]
    resized = F.interpolate(slices.flatten(0, 1), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(n, s, *resized.shape[1:])

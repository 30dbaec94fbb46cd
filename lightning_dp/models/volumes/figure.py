"""The figure of a volume's slice weights, with the slices that weigh most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_dp.models.volumes.slices import AXES
from lightning_dp.optional import require

__all__ = ("plot_slice_weights",)


def plot_slice_weights(
    volume: Tensor,
    weights: Mapping[str, Tensor],
    planted: Mapping[str, int] | None = None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    title: str = "",
) -> Any:
    """One column for each axis: the slice with the largest weight above, the weights of all slices below.

    The figure shows the volume itself: drawn from a training record it is as private as the record.

    Args:
        volume: ``(C, Z, X, Y)``; its first channel is shown.
        weights: the slice weights ``(S,)`` by axis, from :meth:`SliceNet.slice_weights` for one volume.
        planted: index of a slice that is known to matter, by axis.
        others: further weights to draw as lines, by their name and axis, for one
            ``{"HiResCAM": slice_mass(...)}``; scaled to the same sum along each axis.
        title: written above.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    figures = require("matplotlib.figure", "plots", "plot_slice_weights()")
    figure = figures.Figure(figsize=(3.2 * len(weights), 5.0), layout="constrained")
    axes = figure.subplots(2, len(weights), squeeze=False, height_ratios=(2, 1.3))
    for column, (axis, values) in enumerate(weights.items()):
        values = values.detach().cpu()
        largest = int(values.argmax())
        picture, bars = axes[0, column], axes[1, column]
        picture.imshow(volume[0].detach().cpu().select(AXES[axis] - 2, largest).numpy(), cmap="gray")
        picture.set_title(f"{axis} = {largest}, weight {float(values[largest]):.3f}")
        picture.set_axis_off()
        bars.bar(range(len(values)), values.numpy(), color="tab:blue", label="attention")
        for name, by_axis in (others or {}).items():
            line = by_axis[axis].detach().cpu()
            bars.plot(range(len(values)), (line * (values.sum() / line.sum())).numpy(), color="tab:orange", label=name)
        if planted is not None and axis in planted:
            bars.axvline(planted[axis], color="tab:red", linestyle=":", label="planted")
        bars.set_xlabel(f"slice along {axis}")
    axes[1, 0].set_ylabel("weight")
    axes[1, 0].legend(fontsize="small")
    if title:
        figure.suptitle(title)
    return figure

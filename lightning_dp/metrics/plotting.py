"""The one place where matplotlib is imported: when a picture is asked for."""

from __future__ import annotations

from typing import Any

from lightning_dp.optional import require

__all__ = ("new_axes",)


def new_axes(ax: Any = None) -> tuple[Any, Any]:
    """The figure and axes to draw on: those of ``ax``, or new ones.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    if ax is not None:
        return ax.figure, ax
    # Not pyplot: its figures stay open until closed, and it may look for a display.
    figure = require("matplotlib.figure", "plots", "plot()")
    fig = figure.Figure(figsize=(5.0, 4.0), layout="constrained")
    return fig, fig.add_subplot()

"""Pictures that live inside the page: SVG that takes the page's own colours, light or dark, and is read aloud."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from lightning_dp.accounting.spent import rounded_up
from lightning_dp.optional import require
from lightning_dp.report.section import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ("INK", "draw_budget", "draw_corridor", "draw_roc", "figure_of", "new_figure", "require_matplotlib")

INK = "#123457"
"""Drawn in this colour, a line takes the colour of the page's text."""
_COLOURS = ("#2f6fb7", "#c2571a", "#2c8a57", "#8a4fa3")


def require_matplotlib() -> Any:
    """The module, or a ModuleNotFoundError that says how to get it."""
    return require("matplotlib", "plots", "the report, which draws,")


def new_figure(width: float = 6.4, height: float = 3.6) -> tuple[Drawing, Any]:
    """A figure and its axes, without a window, in the page's ink; sizes in inches."""
    matplotlib = require_matplotlib()
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(
        {
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False, "font.size": 10.0,
        }
    ):  # fmt: skip
        figure = Drawing(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    return figure, axes


def figure_of(figure: Drawing, title: str, description: str) -> Figure:
    """Turns a matplotlib figure into inline SVG: no fixed background, text as text, names of its own for every part."""
    matplotlib = require_matplotlib()
    # Two pictures of one title, of two groups say, must not share the names of their parts.
    name = f"{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{zlib.crc32(description.encode()):08x}"
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = svg.replace(INK, "currentColor")
    labelled = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    head, _, rest = svg.partition(">")
    inches = figure.get_size_inches()[0]
    labelled += f' style="max-width: {6.0 * inches:.2f}rem"'  # letters of one size in pictures of any width
    head = re.sub(r'\s(width|height)="[^"]*"', "", head).replace("<svg", labelled, 1)
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return Figure(f"{head}>{words}{rest}".strip(), title, description)


def draw_budget(steps: Sequence[int], eps: Sequence[float], limit: float | None) -> Figure:
    """Eps over training."""
    figure, axes = new_figure()
    axes.plot(steps, eps, color=_COLOURS[0], linewidth=2, marker="o", markersize=3)
    if limit is not None:
        axes.axhline(limit, color=INK, linewidth=1, linestyle="--")
        axes.annotate("budget", (steps[0], limit), xytext=(0, 4), textcoords="offset points", color=INK)
    axes.set(xlabel="training step", ylabel="eps spent (upper bound)", ylim=(0, None))
    words = f"Eps rises from {rounded_up(eps[0])} at step {steps[0]} to {rounded_up(eps[-1])} at step {steps[-1]}."
    return figure_of(figure, "Privacy spent over training", words)


def draw_roc(fpr: Sequence[float], tpr: Sequence[float]) -> Figure:
    """The most that any membership attack can reach."""
    figure, axes = new_figure(4.6, 3.9)
    axes.fill_between(fpr, fpr, tpr, color=_COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(fpr, tpr, color=_COLOURS[0], linewidth=2, label="no attack is above this line")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="guessing")
    axes.set(
        xlabel="false alarms among people who were not in", ylabel="share of members found", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    words = "The upper bound on true-positive rate over false-positive rate, above the diagonal of guessing."
    return figure_of(figure, "Membership attacks: what none can exceed", words)


def draw_corridor(kappa: Sequence[float], curves: Sequence[tuple[str, Sequence[float], bool]]) -> Figure:
    """Reconstruction: success over the chance of a blind guess, one curve for each attacker."""
    figure, axes = new_figure()
    for (name, values, guaranteed), colour in zip(curves, _COLOURS, strict=False):
        label = f"{name} ({'guarantee' if guaranteed else 'not a guarantee'})"
        axes.plot(kappa, values, color=colour, linewidth=2, linestyle="-" if guaranteed else "--", label=label)
    axes.plot(kappa, kappa, color=INK, linewidth=1, linestyle=":", label="blind guess")
    axes.set(xscale="log", yscale="log", xlabel="chance of a blind guess (kappa)", ylabel="chance of reconstruction")
    axes.legend(frameon=False, labelcolor=INK)
    words = "; ".join(f"{name}: {values[0]:.2g} at kappa {kappa[0]:.2g}" for name, values, _ in curves)
    return figure_of(figure, "Reconstruction: between the strongest and a weaker attacker", words)

"""What a calibration measure gives back: named numbers, a table, a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_dp.metrics.estimate import Estimate, finite, table
from lightning_dp.metrics.plotting import new_axes

__all__ = ("CalibrationResult", "CalibrationRow", "ReliabilityBin")

MEASURES = ("accuracy", "ece", "mce", "adaptive_ece", "classwise_ece", "brier", "nll")


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram.

    Attributes:
        low: lower edge of the predicted probability.
        high: upper edge.
        confidence: mean predicted probability; NaN if empty.
        frequency: share of events that came true, with its Wilson interval and the number of events.
    """

    low: float
    high: float
    confidence: float
    frequency: Estimate


@dataclass(frozen=True)
class CalibrationRow:
    """The calibration of one group; see `calibration_result` for the definitions."""

    group: str
    n: int
    accuracy: Estimate
    ece: Estimate
    mce: Estimate
    adaptive_ece: Estimate
    classwise_ece: Estimate
    brier: Estimate
    nll: Estimate
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CalibrationResult:
    """Calibration of every group (`rows`) and of all samples together (`overall`)."""

    task: str
    rows: tuple[CalibrationRow, ...]
    overall: CalibrationRow
    confidence: float
    attributes: tuple[str, ...]
    _by: Callable[[tuple[str, ...]], CalibrationResult] = field(repr=False, compare=False)

    def by(self, *attributes: str) -> CalibrationResult:
        """The same samples grouped by some of the attributes alone."""
        return self._by(attributes)

    def row(self, group: str) -> CalibrationRow:
        """The row of a group.

        Raises:
            KeyError: no such group.
        """
        for row in self.rows:
            if row.group == group:
                return row
        raise KeyError(f"no group {group!r}: the groups are {[row.group for row in self.rows]}.")

    def scalars(self) -> dict[str, float]:
        """Values for a logger: ``ece`` ..., and ``ece/<group>`` ...; always the same names, NaN where there is none."""
        named = {name: getattr(self.overall, name).value for name in MEASURES}
        if self.attributes != ("",):
            named |= {f"{name}/{row.group}": getattr(row, name).value for row in self.rows for name in MEASURES}
        return named

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for strict JSON (None for what is not finite)."""
        return {
            "task": self.task,
            "confidence": self.confidence,
            "attributes": list(self.attributes),
            "overall": _row_dict(self.overall),
            "groups": [_row_dict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        shown = (self.overall,) if self.attributes == ("",) else (*self.rows, self.overall)
        body = [[row.group, str(row.n), *(str(getattr(row, name)) for name in MEASURES)] for row in shown]
        return table(("group", "n", *MEASURES), body)

    def plot(self, group: str | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Reliability diagram of one group, or of all in one picture: frequency against confidence with intervals.

        Returns:
            The matplotlib figure and axes. The size of a point grows with its count, which the legend gives.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        fig, ax = new_axes(ax)
        if group is not None:
            rows: tuple[CalibrationRow, ...] = (self.row(group),)
        else:
            rows = (self.overall,) if self.attributes == ("",) else self.rows
        ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
        for row in rows:
            full = [b for b in row.bins if b.frequency.n]
            x, y = [b.confidence for b in full], [b.frequency.value for b in full]
            spread = [
                [max(0.0, b.frequency.value - b.frequency.low) for b in full],
                [max(0.0, b.frequency.high - b.frequency.value) for b in full],
            ]
            drawn = ax.errorbar(x, y, yerr=spread, linewidth=1, capsize=2, label=f"{row.group} (n = {row.n})")
            total = max(1, sum(b.frequency.n for b in full))
            ax.scatter(x, y, s=[8 + 150 * b.frequency.n / total for b in full], color=drawn.lines[0].get_color())
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share that came true")
        ax.legend(fontsize="small")
        return fig, ax


def _row_dict(row: CalibrationRow) -> dict[str, Any]:
    bins = [
        {"low": b.low, "high": b.high, "confidence": finite(b.confidence), "frequency": b.frequency.to_dict()}
        for b in row.bins
    ]
    named = {name: getattr(row, name).to_dict() for name in MEASURES}
    return {"group": row.group, "n": row.n, **named, "bins": bins}

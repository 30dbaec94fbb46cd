"""What a fairness measure gives back: a row for each group, the gaps between groups, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_dp.metrics.estimate import Estimate, finite, table
from lightning_dp.metrics.plotting import new_axes

__all__ = ("FairnessResult", "Gap", "GroupRow", "OutcomeRow")

RATES = ("accuracy", "base_rate", "selection_rate", "tpr", "fpr", "auroc", "statistical_parity_difference")


@dataclass(frozen=True)
class OutcomeRow:
    """One outcome (the positive class, one class against the rest, or one label) in one group.

    Attributes:
        outcome: its name.
        accuracy: share of right decisions about this outcome.
        base_rate: share of samples that have it.
        selection_rate: share of samples predicted to have it.
        tpr: true-positive rate, over the samples that have it (its ``n``).
        fpr: false-positive rate, over those that have not.
        auroc: area under the ROC curve, over all samples.
        auroc_error: how much `auroc` can be off because scores were kept in cells.
        statistical_parity_difference: selection rate here minus that of everybody else, signed.
    """

    outcome: str
    accuracy: Estimate
    base_rate: Estimate
    selection_rate: Estimate
    tpr: Estimate
    fpr: Estimate
    auroc: Estimate
    auroc_error: float
    statistical_parity_difference: Estimate


@dataclass(frozen=True)
class GroupRow:
    """One group.

    Attributes:
        group: its name.
        n: its number of samples.
        accuracy: share of samples predicted right; over labels the mean share of right labels.
        accuracy_parity_difference: accuracy here minus the size-weighted accuracy of the others, signed.
        outcomes: the rates of each outcome.
    """

    group: str
    n: int
    accuracy: Estimate
    accuracy_parity_difference: Estimate
    outcomes: tuple[OutcomeRow, ...]


@dataclass(frozen=True)
class Gap:
    """A distance between groups, with its bootstrap interval.

    Attributes:
        name: of the measure, ``demographic_parity_difference`` for example.
        outcome: name of the outcome; empty for measures of accuracy.
        value: the gap; NaN where a group has no rate.
        low: lower end of the interval.
        high: upper end.
        highest: group with the highest rate.
        lowest: group with the lowest.
        left_out: groups below ``min_count``, left out of this gap by name.
        reason: why it is NaN, otherwise empty.
    """

    name: str
    outcome: str
    value: float
    low: float = math.nan
    high: float = math.nan
    highest: str = ""
    lowest: str = ""
    left_out: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
            "highest": self.highest,
            "lowest": self.lowest,
            "left_out": list(self.left_out),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class FairnessResult:
    """Rates of every group (`rows`), of all samples (`overall`), and the gaps between groups."""

    task: str
    outcomes: tuple[str, ...]
    rows: tuple[GroupRow, ...]
    overall: GroupRow
    gaps: tuple[Gap, ...]
    confidence: float
    attributes: tuple[str, ...]
    _by: Callable[[tuple[str, ...]], FairnessResult] = field(repr=False, compare=False)

    def by(self, *attributes: str) -> FairnessResult:
        """The same samples grouped by some of the attributes alone."""
        return self._by(attributes)

    def row(self, group: str) -> GroupRow:
        """The row of a group.

        Raises:
            KeyError: no such group.
        """
        for row in self.rows:
            if row.group == group:
                return row
        raise KeyError(f"no group {group!r}: the groups are {[row.group for row in self.rows]}.")

    def gap(self, name: str, outcome: str | None = None) -> Gap:
        """A gap by its name, and by its outcome where there are several.

        Raises:
            KeyError: no such gap.
        """
        for gap in self.gaps:
            if gap.name == name and (gap.outcome == outcome or (outcome is None and len(self.outcomes) == 1)):
                return gap
            if gap.name == name and not gap.outcome and outcome is None:
                return gap
        known = sorted({gap.name for gap in self.gaps})
        raise KeyError(f"no gap {name!r} for outcome {outcome!r}: there are {known} for {list(self.outcomes)}.")

    def worst_group(self, measure: str = "accuracy", outcome: str | None = None) -> tuple[str, Estimate]:
        """The group that fares worst: the lowest accuracy, tpr or auroc, or the highest fpr.

        Groups without a value cannot be ranked; the estimate's reason names them. All of them: ("", NaN).
        """
        found = {row.group: self._value(row, measure, outcome) for row in self.rows}
        ranked = {name: e for name, e in found.items() if not math.isnan(e.value)}
        absent = [f"{name} ({e.reason or 'no value'})" for name, e in found.items() if name not in ranked]
        reason = f"not ranked: {', '.join(absent)}" if absent else ""
        if not ranked:
            return "", Estimate(math.nan, reason=reason)
        sign = -1 if measure == "fpr" else 1
        name = min(ranked, key=lambda group: sign * ranked[group].value)
        worst = ranked[name]
        return name, Estimate(worst.value, worst.low, worst.high, worst.n, reason)

    def scalars(self) -> dict[str, float]:
        """Values for a logger; always the same names, NaN where there is none.

        Gaps as ``<name>`` or ``<name>/<outcome>``; groups as ``accuracy/<group>``, ``tpr/<group>`` or
        ``tpr/<outcome>/<group>``; ``worst_group_accuracy``.
        """
        several = len(self.outcomes) > 1
        named = {g.name + (f"/{g.outcome}" if several and g.outcome else ""): g.value for g in self.gaps}
        named["worst_group_accuracy"] = self.worst_group()[1].value
        for row in self.rows:
            named[f"accuracy/{row.group}"] = row.accuracy.value
            named[f"accuracy_parity_difference/{row.group}"] = row.accuracy_parity_difference.value
            for one in row.outcomes:
                infix = f"{one.outcome}/" if several else ""
                rates = (name for name in RATES if name != "accuracy")
                named |= {f"{name}/{infix}{row.group}": getattr(one, name).value for name in rates}
        return named

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for strict JSON (None for what is not finite)."""
        return {
            "task": self.task,
            "outcomes": list(self.outcomes),
            "confidence": self.confidence,
            "attributes": list(self.attributes),
            "overall": _row_dict(self.overall),
            "groups": [_row_dict(row) for row in self.rows],
            "gaps": [gap.to_dict() for gap in self.gaps],
        }

    def __str__(self) -> str:
        parts = []
        for k, outcome in enumerate(self.outcomes):
            body = []
            for row in (*self.rows, self.overall):
                one = row.outcomes[k]
                body.append([row.group, str(row.n), *(str(getattr(one, name)) for name in RATES)])
            parts.append(f"{outcome}\n" + table(("group", "n", *RATES), body))
        body = [
            [row.group, str(row.n), str(row.accuracy), str(row.accuracy_parity_difference)]
            for row in (*self.rows, self.overall)
        ]
        parts.append(table(("all outcomes", "n", "accuracy", "accuracy_parity_difference"), body))
        body = [
            [
                f"{gap.name}{f' ({gap.outcome})' if gap.outcome and len(self.outcomes) > 1 else ''}",
                str(Estimate(gap.value, gap.low, gap.high, reason=gap.reason)),
                f"{gap.lowest} .. {gap.highest}" if gap.highest else "",
                ", ".join(gap.left_out),
            ]
            for gap in self.gaps
        ]
        parts.append(table(("gap", "value", "from .. to", "left out"), body))
        return "\n\n".join(parts)

    def plot(self, measure: str = "accuracy", outcome: str | None = None, ax: Any = None) -> tuple[Any, Any]:
        """One measure of all groups as points with their intervals; the line is that of all samples.

        Args:
            measure: "accuracy", "selection_rate", "base_rate", "tpr", "fpr" or "auroc".
            outcome: which outcome, where there are several.
            ax: axes to draw on.

        Returns:
            The matplotlib figure and axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        fig, ax = new_axes(ax)
        found = [(f"{row.group} (n = {row.n})", self._value(row, measure, outcome)) for row in self.rows]
        for place, (_, e) in enumerate(found):
            if math.isnan(e.value):
                ax.text(0.5, place, e.reason, va="center", ha="center", fontsize="small")
                continue
            known = not math.isnan(e.low)
            spread = [[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]] if known else None
            ax.errorbar([e.value], [place], xerr=spread, fmt="o", capsize=3, color="C0")
        ax.axvline(self._value(self.overall, measure, outcome).value, color="0.6", linestyle="--", linewidth=1)
        ax.set(xlim=(0, 1), ylim=(-0.5, len(found) - 0.5), xlabel=measure.replace("_", " "))
        ax.set_yticks(range(len(found)), [name for name, _ in found])
        return fig, ax

    def _value(self, row: GroupRow, measure: str, outcome: str | None) -> Estimate:
        if measure not in RATES:
            raise KeyError(f"no measure {measure!r}: there are {list(RATES)}.")
        if measure == "accuracy" and outcome is None:
            return row.accuracy
        if outcome is None and len(self.outcomes) > 1:
            raise KeyError(f"{measure} needs an outcome: one of {list(self.outcomes)}.")
        for one in row.outcomes:
            if outcome in (None, one.outcome):
                value: Estimate = getattr(one, measure)
                return value
        raise KeyError(f"no outcome {outcome!r}: there are {list(self.outcomes)}.")


def _row_dict(row: GroupRow) -> dict[str, Any]:
    return {
        "group": row.group,
        "n": row.n,
        "accuracy": row.accuracy.to_dict(),
        "accuracy_parity_difference": row.accuracy_parity_difference.to_dict(),
        "outcomes": [
            {
                "outcome": one.outcome,
                "auroc_error": finite(one.auroc_error),
                **{name: getattr(one, name).to_dict() for name in RATES},
            }
            for one in row.outcomes
        ],
    }

"""What a measure of multiplicity gives back: how much members differ, and what an ensemble that may abstain does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_dp.metrics.estimate import Estimate, mean, rate, table
from lightning_dp.metrics.plotting import new_axes

if TYPE_CHECKING:
    from lightning_dp.metrics.functional.multiplicity import MultiplicityCounts

__all__ = ("EnsembleRow", "MultiplicityResult", "MultiplicityRow", "multiplicity_row")

#: Cells of the viable range, each 0.01 wide.
RANGE_CELLS = 100
MEASURES = (
    "ambiguity",
    "discrepancy",
    "obscurity",
    "pairwise_disagreement",
    "self_consistency",
    "viable_range",
    "viable_range_95",
)


@dataclass(frozen=True)
class EnsembleRow:
    """The ensemble under one rule of abstention.

    Attributes:
        rule: name of the rule.
        coverage: share of samples it answers.
        abstention: share of samples it leaves to somebody else.
        selective_accuracy: share of its answers that are right.
    """

    rule: str
    coverage: Estimate
    abstention: Estimate
    selective_accuracy: Estimate


@dataclass(frozen=True)
class MultiplicityRow:
    """The multiplicity of one group; see `multiplicity_result` for the definitions."""

    group: str
    n: int
    ambiguity: Estimate
    discrepancy: Estimate
    obscurity: Estimate
    pairwise_disagreement: Estimate
    self_consistency: Estimate
    viable_range: Estimate
    viable_range_95: Estimate
    member_accuracy: tuple[Estimate, ...]
    ensembles: tuple[EnsembleRow, ...]


@dataclass(frozen=True)
class MultiplicityResult:
    """Multiplicity of every group (`rows`) and over all samples (`overall`), for ``num_members`` members."""

    rows: tuple[MultiplicityRow, ...]
    overall: MultiplicityRow
    num_members: int
    rules: tuple[str, ...]
    confidence: float
    attributes: tuple[str, ...]
    _by: Callable[[tuple[str, ...]], MultiplicityResult] = field(repr=False, compare=False)

    def by(self, *attributes: str) -> MultiplicityResult:
        """The same samples grouped by some of the attributes alone."""
        return self._by(attributes)

    def row(self, group: str) -> MultiplicityRow:
        """The row of a group.

        Raises:
            KeyError: no such group.
        """
        for row in self.rows:
            if row.group == group:
                return row
        raise KeyError(f"no group {group!r}: the groups are {[row.group for row in self.rows]}.")

    def scalars(self) -> dict[str, float]:
        """Values for a logger; always the same names, NaN where there is none.

        ``ambiguity`` ..., ``coverage_<rule>``, ``selective_accuracy_<rule>``; each with ``/<group>`` for the groups.
        """
        named: dict[str, float] = {}
        for row in (self.overall, *self._shown):
            suffix = "" if row is self.overall else f"/{row.group}"
            named |= {f"{name}{suffix}": getattr(row, name).value for name in MEASURES}
            for ensemble in row.ensembles:
                named[f"coverage_{ensemble.rule}{suffix}"] = ensemble.coverage.value
                named[f"selective_accuracy_{ensemble.rule}{suffix}"] = ensemble.selective_accuracy.value
        return named

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for strict JSON (None for what is not finite)."""
        return {
            "num_members": self.num_members,
            "confidence": self.confidence,
            "attributes": list(self.attributes),
            "overall": _row_dict(self.overall),
            "groups": [_row_dict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        shown = (*self._shown, self.overall)
        body = [[row.group, str(row.n), *(str(getattr(row, name)) for name in MEASURES)] for row in shown]
        parts = [f"{self.num_members} members", table(("group", "n", *MEASURES), body)]
        body = [
            [f"{e.rule}: {row.group}", str(row.n), str(e.coverage), str(e.abstention), str(e.selective_accuracy)]
            for k in range(len(self.rules))
            for row in shown
            for e in (row.ensembles[k],)
        ]
        if body:
            parts.append(table(("ensemble", "n", "coverage", "abstention", "selective accuracy"), body))
        return "\n\n".join(parts)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Selective accuracy against coverage of the ensemble, a point for each group and rule, with intervals.

        Returns:
            The matplotlib figure and axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        fig, ax = new_axes(ax)
        for k, rule in enumerate(self.rules):
            for place, row in enumerate((*self._shown, self.overall)):
                x, y = row.ensembles[k].coverage, row.ensembles[k].selective_accuracy
                if math.isnan(x.value) or math.isnan(y.value):
                    continue
                spread = [[[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]] for e in (x, y)]
                ax.errorbar(
                    [x.value],
                    [y.value],
                    xerr=spread[0],
                    yerr=spread[1],
                    fmt="osD^v"[k % 5],
                    color=f"C{place}",
                    capsize=2,
                    label=f"{row.group}, {rule}",
                )
        ax.set(xlim=(0, 1.02), xlabel="coverage: share of samples answered", ylabel="selective accuracy")
        if ax.has_data():
            ax.legend(fontsize="small")
        return fig, ax

    @property
    def _shown(self) -> tuple[MultiplicityRow, ...]:
        return () if self.attributes == ("",) else self.rows


def multiplicity_row(name: str, counts: MultiplicityCounts, rules: Sequence[str], confidence: float) -> MultiplicityRow:
    """The row of a group, from its sums."""
    n, members = int(counts.samples), counts.disagreements.shape[-1]

    def average(sums: Any, count: int, absent: str) -> Estimate:
        if count == 0:
            return Estimate(math.nan, n=0, reason=absent if n else "no samples")
        return mean(float(sums[0]), float(sums[1]), count, confidence)

    most = int(counts.disagreements.max()) if members else 0
    alone = Estimate(math.nan, n=n, reason="one member has no pairs")
    pairs = average(counts.pairs, n, "") if members > 1 or not n else alone
    agree = Estimate(1 - pairs.value, 1 - pairs.high, 1 - pairs.low, pairs.n, pairs.reason)
    ranged, labelled = int(counts.ranged), int(counts.labelled)
    whole = ranged == n  # members that gave decisions for some samples: no range of all
    ensembles = []
    for k, rule in enumerate(rules):
        answered, judged = int(counts.answered[k]), int(counts.answered_labelled[k])
        reason = "nothing is answered" if answered == 0 else "no targets"
        ensembles.append(
            EnsembleRow(
                rule,
                rate(answered, n, confidence),
                rate(n - answered, n, confidence),
                rate(int(counts.right[k]), judged, confidence, reason if n else "no samples"),
            )
        )
    return MultiplicityRow(
        group=name,
        n=n,
        ambiguity=rate(int(counts.ambiguous), n, confidence),
        discrepancy=rate(most, n, confidence),
        obscurity=average(counts.contradicted, n, ""),
        pairwise_disagreement=pairs,
        self_consistency=agree,
        viable_range=average(counts.ranges, ranged if whole else 0, "decisions without probabilities"),
        viable_range_95=_quantile(counts.range_cells, ranged if whole else 0, n),
        member_accuracy=tuple(
            rate(labelled - int(wrong), labelled, confidence, "no targets" if n else "no samples")
            for wrong in counts.errors
        ),
        ensembles=tuple(ensembles),
    )


def _quantile(cells: Any, ranged: int, n: int) -> Estimate:
    if ranged == 0:
        return Estimate(math.nan, reason="decisions without probabilities" if n else "no samples")
    cell = int((cells.cumsum(0) >= 0.95 * ranged - 1e-9).nonzero()[0])
    return Estimate((cell + 1) / RANGE_CELLS, n=n)


def _row_dict(row: MultiplicityRow) -> dict[str, Any]:
    return {
        "group": row.group,
        "n": row.n,
        **{name: getattr(row, name).to_dict() for name in MEASURES},
        "member_accuracy": [e.to_dict() for e in row.member_accuracy],
        "ensembles": [
            {
                "rule": e.rule,
                "coverage": e.coverage.to_dict(),
                "abstention": e.abstention.to_dict(),
                "selective_accuracy": e.selective_accuracy.to_dict(),
            }
            for e in row.ensembles
        ],
    }

"""What a selective measure gives back: the risk-coverage curve of each group and what is read off it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, finite, rate, table
from lightning_dp.metrics.functional.histogram import CELLS, lower_edges
from lightning_dp.metrics.plotting import new_axes

__all__ = ("OperatingPoint", "RiskCoverageCurve", "SelectiveResult", "SelectiveRow", "selective_row")


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold of the confidence: samples at or above it are answered.

    Attributes:
        threshold: the threshold; NaN if nothing is answered.
        coverage: share of samples answered, with its Wilson interval.
        selective_accuracy: share of the answered that are right (its ``n`` is their number).
    """

    threshold: float
    coverage: Estimate
    selective_accuracy: Estimate


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Points of falling threshold; each accepts one more block of equally confident samples.

    Attributes:
        thresholds: lowest confidence accepted (lower edge of its cell).
        accepted: number of samples accepted.
        errors: number of errors among them.
    """

    thresholds: tuple[float, ...]
    accepted: tuple[int, ...]
    errors: tuple[int, ...]

    @property
    def coverages(self) -> tuple[float, ...]:
        """Share of samples accepted."""
        return tuple(a / self.accepted[-1] for a in self.accepted)

    @property
    def risks(self) -> tuple[float, ...]:
        """Share of errors among the accepted."""
        return tuple(e / a for e, a in zip(self.errors, self.accepted, strict=True))


@dataclass(frozen=True)
class SelectiveRow:
    """Selective prediction in one group; see `selective_result` for the definitions."""

    group: str
    n: int
    accuracy: Estimate
    aurc: Estimate
    aurc_error: float
    eaurc: Estimate
    curve: RiskCoverageCurve
    confidence: float

    def at_coverage(self, coverage: float) -> OperatingPoint:
        """The smallest accepted set that covers at least ``coverage``.

        Raises:
            ValueError: ``coverage`` outside (0, 1].
        """
        if not 0.0 < coverage <= 1.0:
            raise ValueError(f"coverage must lie in (0, 1], got {coverage}: it is the share of samples answered.")
        enough = [i for i, a in enumerate(self.curve.accepted) if a >= coverage * self.n - 1e-9]
        return self._point(enough[0] if enough else None)

    def at_threshold(self, threshold: float) -> OperatingPoint:
        """All samples with at least this confidence (whole cells: those whose lower edge is at or above it)."""
        taken = [i for i, t in enumerate(self.curve.thresholds) if t >= threshold]
        return self._point(taken[-1] if taken else None)

    def coverage_at_risk(self, risk: float) -> Estimate:
        """The largest coverage whose risk on these samples is at most ``risk``; 0 if there is none."""
        if not self.n:
            return Estimate(math.nan, reason="no samples")
        good = [c for c, r in zip(self.curve.coverages, self.curve.risks, strict=True) if r <= risk]
        return Estimate(max(good, default=0.0), n=self.n)

    def _point(self, place: int | None) -> OperatingPoint:
        if place is None:
            none = rate(0, 0, self.confidence, "nothing is answered" if self.n else "no samples")
            return OperatingPoint(math.nan, rate(0, self.n, self.confidence), none)
        accepted, errors = self.curve.accepted[place], self.curve.errors[place]
        return OperatingPoint(
            self.curve.thresholds[place],
            rate(accepted, self.n, self.confidence),
            rate(accepted - errors, accepted, self.confidence),
        )


@dataclass(frozen=True)
class SelectiveResult:
    """Selective prediction in every group (`rows`) and over all samples (`overall`)."""

    rows: tuple[SelectiveRow, ...]
    overall: SelectiveRow
    coverages: tuple[float, ...]
    risks: tuple[float, ...]
    confidence: float
    attributes: tuple[str, ...]
    _by: Callable[[tuple[str, ...]], SelectiveResult] = field(repr=False, compare=False)

    def by(self, *attributes: str) -> SelectiveResult:
        """The same samples grouped by some of the attributes alone."""
        return self._by(attributes)

    def row(self, group: str) -> SelectiveRow:
        """The row of a group.

        Raises:
            KeyError: no such group.
        """
        for row in self.rows:
            if row.group == group:
                return row
        raise KeyError(f"no group {group!r}: the groups are {[row.group for row in self.rows]}.")

    def at_coverage(self, coverage: float) -> dict[str, OperatingPoint]:
        """Every group at one common threshold, at which all samples together reach ``coverage`` (key "all").

        It is what happens in use, where nobody sets a threshold for each group: a group that the model is less sure about
        is answered less often.
        """
        common = self.overall.at_coverage(coverage)
        points = {row.group: row.at_threshold(common.threshold) for row in self._shown}
        return {**points, "all": common}

    def scalars(self) -> dict[str, float]:
        """Values for a logger; always the same names, NaN where there is none.

        ``aurc``, ``eaurc``, ``coverage_at_risk_<r>``, ``selective_accuracy_at_<c>`` over all samples; ``aurc/<group>``, and
        at the common threshold ``coverage_at_<c>/<group>`` and ``selective_accuracy_at_<c>/<group>``.
        """
        named = {"aurc": self.overall.aurc.value, "eaurc": self.overall.eaurc.value}
        named |= {f"coverage_at_risk_{r:g}": self.overall.coverage_at_risk(r).value for r in self.risks}
        named |= {f"aurc/{row.group}": row.aurc.value for row in self._shown}
        for c in self.coverages:
            for group, point in self.at_coverage(c).items():
                if group == "all":
                    named[f"selective_accuracy_at_{c:g}"] = point.selective_accuracy.value
                else:
                    named[f"coverage_at_{c:g}/{group}"] = point.coverage.value
                    named[f"selective_accuracy_at_{c:g}/{group}"] = point.selective_accuracy.value
        return named

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for strict JSON (None for what is not finite)."""
        common = {f"{c:g}": self.at_coverage(c) for c in self.coverages}
        return {
            "confidence": self.confidence,
            "attributes": list(self.attributes),
            "overall": self._row_dict(self.overall),
            "groups": [self._row_dict(row) for row in self.rows],
            "at_common_threshold": {c: {g: _point_dict(p) for g, p in found.items()} for c, found in common.items()},
        }

    def __str__(self) -> str:
        header = ["group", "n", "accuracy", "aurc", "eaurc", *(f"coverage at risk {r:g}" for r in self.risks)]
        body = []
        for row in (*self._shown, self.overall):
            at_risks = [str(row.coverage_at_risk(r)) for r in self.risks]
            body.append([row.group, str(row.n), str(row.accuracy), str(row.aurc), str(row.eaurc), *at_risks])
        common = [["common threshold at coverage", "coverage", "selective accuracy"]]
        for c in self.coverages:
            points = self.at_coverage(c).items()
            common += [[f"{c:g}: {g}", str(p.coverage), str(p.selective_accuracy)] for g, p in points]
        return table(header, body) + "\n\n" + table(common[0], common[1:])

    def plot(self, group: str | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Risk against coverage, of one group or of all in one picture.

        Returns:
            The matplotlib figure and axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        fig, ax = new_axes(ax)
        for row in (self.row(group),) if group is not None else (*self._shown, self.overall):
            if row.n:
                label = f"{row.group} (n = {row.n}), AURC {row.aurc.value:.3f}"
                ax.plot(row.curve.coverages, row.curve.risks, drawstyle="steps-post", label=label)
        ax.set(xlim=(0, 1), xlabel="coverage: share of samples answered", ylabel="risk: share of errors among them")
        if any(row.n for row in (*self.rows, self.overall)):
            ax.legend(fontsize="small")
        return fig, ax

    @property
    def _shown(self) -> tuple[SelectiveRow, ...]:
        return () if self.attributes == ("",) else self.rows

    def _row_dict(self, row: SelectiveRow) -> dict[str, Any]:
        return {
            "group": row.group,
            "n": row.n,
            "accuracy": row.accuracy.to_dict(),
            "aurc": row.aurc.to_dict(),
            "aurc_error": finite(row.aurc_error),
            "eaurc": row.eaurc.to_dict(),
            "coverage_at_risk": {f"{r:g}": row.coverage_at_risk(r).to_dict() for r in self.risks},
            "curve": {"coverages": list(row.curve.coverages), "risks": list(row.curve.risks)},
        }


def selective_row(name: str, accepted: Tensor, errors: Tensor, confidence: float) -> SelectiveRow:
    """The row of a group, from samples and errors by blocks of rising confidence."""
    edges = lower_edges() if len(accepted) == CELLS else torch.full((len(accepted),), math.nan, dtype=torch.float64)
    kept = accepted > 0
    m, e, edges = (value[kept].double().flip(0) for value in (accepted, errors, edges))
    n, wrong = int(m.sum()), int(e.sum())
    curve = RiskCoverageCurve(
        tuple(edges.tolist()), tuple(map(int, m.cumsum(0).tolist())), tuple(map(int, e.cumsum(0).tolist()))
    )
    accuracy = rate(n - wrong, n, confidence)
    if n == 0:
        return SelectiveRow(name, 0, accuracy, accuracy, math.nan, accuracy, curve, confidence)
    value, best, worst = (float(area) / n for area in _areas(m, e))
    error = max(value - best, worst - value)
    # All errors last: of the k most confident, k - (n - wrong) are errors once the right ones are used up.
    perfect = (wrong - (n - wrong) * float(_harmonic(n - wrong, n))) / n
    return SelectiveRow(
        name, n, accuracy, Estimate(value, n=n), error, Estimate(value - perfect, n=n), curve, confidence
    )


def _areas(m: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n times AURC from blocks in falling order: expected over ties, with errors last in a block, and with errors first.

    In a block of m samples with e errors, after j samples with E errors, the i-th has the risk (E + i e/m) / (j + i) in
    expectation, which sums to e + (E - j e/m) (H_{j+m} - H_j) with harmonic numbers H.
    """
    after = m.cumsum(0)
    before, errors = after - m, e.cumsum(0) - e
    expected = e + (errors - before * e / m) * _harmonic(before, after)
    middle = before + m - e
    last = errors * _harmonic(before, middle) + e + (errors - middle) * _harmonic(middle, after)
    middle = before + e
    first = e + (errors - before) * _harmonic(before, middle) + (errors + e) * _harmonic(middle, after)
    return expected.sum(), last.sum(), first.sum()


def _harmonic(low: Tensor | int, high: Tensor | int) -> Tensor:
    """H_high - H_low, the sum of 1/i for low < i <= high."""
    ends = (torch.as_tensor(end, dtype=torch.float64) + 1 for end in (high, low))
    above, below = (torch.digamma(end) for end in ends)
    return above - below


def _point_dict(point: OperatingPoint) -> dict[str, Any]:
    return {
        "threshold": finite(point.threshold),
        "coverage": point.coverage.to_dict(),
        "selective_accuracy": point.selective_accuracy.to_dict(),
    }

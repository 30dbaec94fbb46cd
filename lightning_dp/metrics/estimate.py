"""A number as it should be quoted: with its interval, the count behind it and, where there is none, the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

__all__ = ("Estimate", "table", "wilson_interval")


@dataclass(frozen=True)
class Estimate:
    """A value, its confidence interval, and the number of samples it rests on.

    Attributes:
        value: the value; NaN where it does not exist.
        low: lower end of the interval; NaN where no interval is given.
        high: upper end of the interval.
        n: the denominator: how many samples the value is taken over.
        reason: why the value is NaN (or infinite), otherwise empty.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Plain values for strict JSON: what is not finite becomes None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        plain: dict[str, float | int | str | None] = {k: finite(v) for k, v in numbers.items()}
        return {**plain, "n": self.n, "reason": self.reason}

    def __str__(self) -> str:
        if self.reason and math.isnan(self.value):
            return f"nan ({self.reason})"
        text = f"{self.value:.3f}"
        if not math.isnan(self.low):
            text += f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{text} ({self.reason})" if self.reason else text


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def z_score(confidence: float) -> float:
    """Two-sided normal quantile.

    Raises:
        ValueError: ``confidence`` outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}: 0.95 is usual.")
    return float(ndtri(0.5 + 0.5 * confidence))


def wilson_interval(hits: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (NaN, NaN) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    z2 = z_score(confidence) ** 2
    centre = (hits + 0.5 * z2) / (n + z2)
    half = math.sqrt(z2 * (hits * (n - hits) / n + 0.25 * z2)) / (n + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(hits: float, n: int, confidence: float, reason: str = "no samples") -> Estimate:
    """The proportion hits / n with its Wilson interval; NaN with ``reason`` for n = 0."""
    if n == 0:
        return Estimate(math.nan, n=0, reason=reason)
    return Estimate(hits / n, *wilson_interval(hits, n, confidence), n=n)


def mean(total: float, squares: float, n: int, confidence: float) -> Estimate:
    """The mean of n values from their sum and sum of squares, with the normal interval (none for n = 1)."""
    if n == 0:
        return Estimate(math.nan, n=0, reason="no samples")
    value = total / n
    if n == 1 or not math.isfinite(squares):
        return Estimate(value, n=n)
    half = z_score(confidence) * math.sqrt(max(0.0, squares / n - value * value) / (n - 1))
    return Estimate(value, value - half, value + half, n=n)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)

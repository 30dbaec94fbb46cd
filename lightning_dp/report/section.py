"""What a callback puts into a report: plain sentences, tables and pictures, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

__all__ = ("Cell", "Figure", "Reports", "Section", "Table")

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        caption: what it shows, as a sentence.
        columns: names of the columns, units included; the first names the row.
        rows: one cell for each column; ``None`` and NaN are shown as a dash.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.caption}: a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class Figure:
    """A picture as inline SVG.

    Attributes:
        svg: the ``<svg>`` element; see :func:`~lightning_dp.report.figure_of`.
        title: its caption.
        description: what it shows, for readers who cannot see it.
    """

    svg: str
    title: str
    description: str


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        key: a name that stays the same from report to report: ``"calibration"``.
        title: the heading.
        paragraphs: what the numbers say, in plain sentences.
        tables: of the numbers.
        figures: of the numbers.
        notes: what the numbers do not say, and what was released without being accounted.
        data: the numbers for ``report.json``: strings, numbers, booleans, ``None``, lists and dicts.
    """

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Reports(Protocol):
    """A callback that has something to say in a report."""

    def report_sections(self, trainer: Any) -> Sequence[Section]:
        """The parts it contributes, from results that are there: called on one rank only, so without collectives."""
        ...

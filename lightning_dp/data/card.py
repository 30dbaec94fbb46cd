"""The public facts of a data set that a privacy report has to name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("DataCard",)


@dataclass(frozen=True)
class DataCard:
    """What a data set is, whose privacy its training protects, and what may be done with it.

    An eps means nothing without the unit it protects and without knowing whether the numbers come from real records;
    both are therefore part of the data set, not of the text around it.

    Attributes:
        name: Name of the data set.
        licence: Licence of the data.
        n: Number of training units before any validation split. The guarantee treats it as public.
        real: ``True`` for measured data, ``False`` for simulated data.
        unit: What one privacy unit is: the thing that neighbouring data sets differ by.
        source: Where the data come from.
    """

    name: str
    licence: str
    n: int
    real: bool
    unit: str
    source: str

    def __str__(self) -> str:
        kind = "real" if self.real else "simulated"
        return f"{self.name} ({kind}, n = {self.n}, privacy unit: {self.unit}, licence: {self.licence}; {self.source})"

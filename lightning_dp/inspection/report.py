"""The report of an inspection: one row for each module that owns parameters, and everything that stands in the way."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

__all__ = ("Inspection", "InspectionRow", "Problem", "Way")

Way = Literal["rule", "fallback", "bare parameter", "shared", "frozen", "not reached", "refused"]
WIDTH = 110


@dataclass(frozen=True)
class InspectionRow:
    """How the parameters of one module are treated.

    Attributes:
        path: the module's path in the network; empty for the root.
        kind: the module's class name.
        parameters: elements of the parameters that it owns itself (with its children's, where the whole is one call).
        trainable: how many of them are trained.
        way: how their gradients per unit are had. ``"rule"``: from the recorded input and output gradient. ``"fallback"``:
            the call is repeated for each unit under ``torch.func.vmap``. ``"bare parameter"``: used beside child modules,
            followed to the function that mixes it with the batch, which is repeated. ``"shared"``: the layer was
            called on something that belongs to no unit and is followed likewise. ``"frozen"``; ``"not reached"``: no
            gradient came in this run. ``"refused"``: see the problems.
        route: how the norms are had: ``"direct"`` (nothing to build), ``"gram"`` (products of positions), ``"held"`` or
            ``"streamed"`` (the units' gradients themselves, kept for the sum or not).
        cost: multiply-adds of the norms, relative to those of the layer's ordinary weight gradient; ``None`` where there is
            no such gradient to compare with.
        calls: how often it was called in the run.
    """

    path: str
    kind: str
    parameters: int
    trainable: int
    way: Way
    route: str = "-"
    cost: float | None = None
    calls: int = 0


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a network from being trained privately.

    Attributes:
        name: the refusal's name in ``lightning_dp.strategies.REFUSALS``, or ``"layer"``, ``"leak"``, ``"samples"``,
            ``"state"``, ``"forward"``.
        message: what was found, why it breaks the guarantee, what to use instead.
    """

    name: str
    message: str


@dataclass(frozen=True)
class Inspection:
    """What :func:`lightning_dp.inspect` found. ``str()`` gives the table.

    Attributes:
        rows: in the network's order, one for each module that owns parameters.
        problems: all of them at once; empty if nothing speaks against private training.
        units: privacy units in the example batch.
    """

    rows: tuple[InspectionRow, ...]
    problems: tuple[Problem, ...]
    units: int

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """Elements of the trainable parameters."""
        return sum(row.trainable for row in self.rows)

    @override
    def __str__(self) -> str:
        head = ("module", "type", "parameters", "trained", "gradients by", "route", "cost")
        body = [_cells(row) for row in self.rows]
        lines = _aligned([head, *body], right=(2, 3, 6))
        lines.insert(1, "-" * max(map(len, lines)))
        ways = {way: sum(row.trainable for row in self.rows if row.way == way) for way in _ways(self.rows)}
        shares = ", ".join(f"{way} {count / max(self.trainable, 1):.0%}" for way, count in ways.items() if count)
        lines += ["", f"{self.trainable:,} of {self.parameters:,} parameters are trained ({shares or 'none'})."]
        if self.ok:
            lines.append(f"Nothing found that couples samples or evades clipping ({self.units} units in the example).")
        for number, problem in enumerate(self.problems, 1):
            lines += [
                "",
                *textwrap.wrap(f"{number}. {problem.name}: {problem.message}", WIDTH, subsequent_indent="   "),
            ]
        return "\n".join(lines)


def _ways(rows: Sequence[InspectionRow]) -> list[Way]:
    return list(dict.fromkeys(row.way for row in rows))


def _cells(row: InspectionRow) -> tuple[str, ...]:
    way = f"{row.way} x{row.calls}" if row.calls > 1 else row.way
    trained = "all" if row.trainable == row.parameters else f"{row.trainable:,}"
    cost = "" if row.cost is None else f"{row.cost:.2f}"
    return row.path or "(root)", row.kind, f"{row.parameters:,}", trained, way, row.route, cost


def _aligned(table: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]

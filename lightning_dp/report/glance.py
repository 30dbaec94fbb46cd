"""The report in one table: what the run guarantees and how good it is, beside the baseline where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_dp.report.words import bound, number, one_in, percent

__all__ = ("glance",)

_SHOWN_METRICS = 4


def glance(document: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows; cells are text, and bounds are rounded up.

    A run without a guarantee is shown with the worst there is, since nothing excludes it, and not with a dash.
    """
    runs = [document] if document["baseline"] is None else [document, document["baseline"]]
    names = list(dict.fromkeys(name for run in runs for name in run["utility"]))[:_SHOWN_METRICS]
    columns = ("", "this model", "baseline")[: len(runs) + 1]
    rows = [
        ("guarantee", *(_guarantee(run) for run in runs)),
        ("exception to it: a part of probability (delta)", *(_exception(run) for run in runs)),
        ("members found at 1 % false accusations, at most", *(_membership(run) for run in runs)),
        ("chance that a given record is reconstructed, at most", *(_reconstruction(run) for run in runs)),
        *((name, *(number(run["utility"].get(name)) for run in runs)) for name in names),
    ]
    return columns, rows


def _guarantee(run: Mapping[str, Any]) -> str:
    if not run["private"]:
        return "none"
    what = "" if run["guarantee"]["labels_covered"] else ", without the labels"
    return f"eps = {bound(run['guarantee']['eps'])}{what}"


def _exception(run: Mapping[str, Any]) -> str:
    return one_in(run["guarantee"]["delta"]) if run["private"] else number(None)


def _membership(run: Mapping[str, Any]) -> str:
    if run["membership"] is None:
        return percent(1.0)
    return percent(next(row["tpr"] for row in run["membership"]["at"] if row["fpr"] == 0.01))


def _reconstruction(run: Mapping[str, Any]) -> str:
    found = run["reconstruction"]
    if found is None:
        return percent(1.0) if run["guarantee"] is None else number(None)
    worst = next(row["probability"] for row in found["rows"] if row["is_guarantee"])
    return f"{percent(worst)} (blind guess {percent(found['kappa'])})"

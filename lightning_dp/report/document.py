"""The content of a report as plain data: what ``report.json`` holds, and what page and card are written from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_dp.accounting import PrivacySettings, PrivacySpent, RiskCorridor
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.report.section import Section

__all__ = ("SCHEMA", "VERSION", "build_document", "load_document", "schema")

SCHEMA, VERSION = "lightning-dp-report", 1
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


def build_document(
    *,
    model: Mapping[str, Any],
    settings: PrivacySettings | None,
    spent: PrivacySpent | None,
    history: Sequence[tuple[int, float]] = (),
    corridor: RiskCorridor | None = None,
    utility: Mapping[str, float] | None = None,
    uncovered: Sequence[Mapping[str, str]] = (),
    sections: Sequence[Section] = (),
    baseline: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    created: date | None = None,
) -> dict[str, Any]:
    """Gathers a report's content.

    Args:
        model: name and number of parameters.
        settings: the public facts of a private run; ``None`` for one without privacy.
        spent: what it spent; ``None`` for one without privacy.
        history: (step, eps) in order.
        corridor: reconstruction risk of the ledger.
        utility: metrics of held-out data.
        uncovered: numbers that eps does not cover: what, why, remedy.
        sections: what callbacks contribute.
        baseline: the document of a run to compare with.
        versions: of the packages that made the numbers.
        created: the report's date; today by default.

    Returns:
        A dict that JSON can hold: numbers that are not finite are ``None``.
    """
    private = spent is not None and math.isfinite(spent.eps)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "created": (date.today() if created is None else created).isoformat(),
        "model": dict(model),
        "private": private,
        "guarantee": None if spent is None or settings is None else _guarantee(settings, spent),
        "membership": None if spent is None else _membership(spent),
        "reconstruction": None if corridor is None else _reconstruction(corridor),
        "budget_over_time": [{"step": step, "eps": eps} for step, eps in history],
        "utility": dict(utility or {}),
        "uncovered": [dict(entry) for entry in uncovered],
        "sections": [_section(section) for section in sections],
        "baseline": None if baseline is None else _without_its_baseline(baseline),
        "versions": dict(versions or {}),
    }
    return _finite(document)  # type: ignore[no-any-return]


def load_document(path: str | Path) -> dict[str, Any]:
    """Reads a ``report.json``, for a baseline.

    Raises:
        PrivacyConfigError: if there is none, or it is of another form or version.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PrivacyConfigError(
            f"no report at {path}: run the baseline with RiskReport first, and give its folder or its report.json."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PrivacyConfigError(f"{path} cannot be read as a report ({type(error).__name__}: {error}).") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise PrivacyConfigError(f"{path} is not a report of this package: its schema is not {SCHEMA!r}.")
    if document.get("version") != VERSION:
        raise PrivacyConfigError(
            f"{path} has version {document.get('version')!r} of the report, this is {VERSION}: write the baseline again with "
            "the same release of the package."
        )
    missing = [name for name in schema()["required"] if name not in document]
    if missing:
        raise PrivacyConfigError(f"{path} is incomplete: it has no {', '.join(missing)}. Write the baseline again.")
    return document


def schema() -> dict[str, Any]:
    """The JSON schema of ``report.json``."""
    text = files("lightning_dp.report").joinpath("schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _guarantee(settings: PrivacySettings, spent: PrivacySpent) -> dict[str, Any]:
    return {
        "sentence": str(spent),
        **asdict(settings),
        "budget": settings.budget,
        "eps_budget": settings.eps,
        "eps": spent.eps,
        "delta": spent.delta,
        "relation": spent.relation,
        "steps": spent.steps,
    }


def _membership(spent: PrivacySpent) -> dict[str, Any]:
    curve = spent.trade_off()
    alpha, beta = curve.points(161)
    return {
        "advantage": curve.membership_advantage,
        "at": [{"fpr": rate, "tpr": float(curve.tpr(rate))} for rate in FALSE_POSITIVE_RATES],
        "roc": {"fpr": [float(a) for a in alpha], "tpr": [1.0 - float(b) for b in beta]},
    }


def _reconstruction(corridor: RiskCorridor) -> dict[str, Any]:
    return {"kappa": corridor.kappa, "rows": [asdict(row) for row in corridor.rows()]}


def _section(section: Section) -> dict[str, Any]:
    return {
        "key": section.key,
        "title": section.title,
        "paragraphs": list(section.paragraphs),
        "tables": [asdict(table) for table in section.tables],
        "notes": list(section.notes),
        "data": dict(section.data),
    }


def _without_its_baseline(baseline: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in baseline.items() if key != "baseline"}


def _finite(value: Any) -> Any:
    """With ``None`` for numbers that JSON cannot hold, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

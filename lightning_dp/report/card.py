"""The report as a model card in Markdown, to be kept beside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_dp.report.glance import glance
from lightning_dp.report.words import assumptions, chance, limits, membership_sentences, number, settings_rows, verdict

__all__ = ("render_card",)


def render_card(document: Mapping[str, Any]) -> str:
    """The model card for a document of :func:`~lightning_dp.report.build_document`."""
    guarantee = document["guarantee"]
    lines = [f"# Model card: {document['model']['name']}", "", "## Privacy", ""]
    if document["private"]:
        lines += [f"**{guarantee['sentence']}**", ""]
    lines += _paragraphs(verdict(document))
    lines += [*_table(*glance(document)), ""]
    needed = assumptions(document)
    if needed:
        lines += ["It holds if:", "", *(f"- {text}" for text in needed), ""]
    lines += _paragraphs(membership_sentences(document))
    if document["reconstruction"] is not None:
        attackers = [
            (r["name"], chance(r["probability"]), "yes" if r["is_guarantee"] else "no", r["meaning"])
            for r in document["reconstruction"]["rows"]
        ]
        lines += [
            "## Reconstruction",
            "",
            *_table(("attacker", "chance, at most", "guaranteed", "meaning"), attackers),
            "",
        ]
    if guarantee is not None:
        lines += ["## What eps does not say", "", *(f"- {text}" for text in limits()), ""]
    if document["uncovered"]:
        lines += ["## Not covered by eps", ""]
        lines += [f"- {entry['what']}: {entry['why']}. {entry['remedy']}." for entry in document["uncovered"]]
        lines.append("")
    lines += _utility(document)
    for section in document["sections"]:
        lines += [f"## {section['title']}", "", *_paragraphs(section["paragraphs"])]
        for table in section["tables"]:
            lines += [f"{table['caption']}:", "", *_table(table["columns"], table["rows"]), ""]
        lines += [*(f"- {note}" for note in section["notes"]), *([""] if section["notes"] else [])]
    if guarantee is not None:
        lines += ["## Settings", "", *_table(("setting", "value"), settings_rows(guarantee)), ""]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines.append(f"Written {document['created']} by lightning-dp{f' ({versions})' if versions else ''}.")
    return "\n".join(lines) + "\n"


def _utility(document: Mapping[str, Any]) -> list[str]:
    baseline = document["baseline"]
    theirs = {} if baseline is None else baseline["utility"]
    names = list(dict.fromkeys((*document["utility"], *theirs)))
    if not names:
        return []
    columns = ("metric", "this model", *(() if baseline is None else ("baseline",)))
    rows = [
        (name, number(document["utility"].get(name)), *(() if baseline is None else (number(theirs.get(name)),)))
        for name in names
    ]
    return ["## Utility on held-out data", "", *_table(columns, rows), ""]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in (text, "")]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(number(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), line("---" for _ in columns), *(line(row) for row in rows)]

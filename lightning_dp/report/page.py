"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere, readable by screen and printer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lightning_dp.report.glance import glance
from lightning_dp.report.section import Figure
from lightning_dp.report.words import (
    assumptions,
    bound,
    chance,
    glossary,
    limits,
    membership_sentences,
    number,
    one_in,
    percent,
    settings_rows,
    verdict,
    warnings,
)

__all__ = ("render_page",)

Figures = Mapping[str, Sequence[Figure]]
Part = tuple[str, str, str]
"""Anchor, heading, inner HTML."""


def render_page(document: Mapping[str, Any], figures: Figures | None = None) -> str:
    """The page for a document of :func:`~lightning_dp.report.build_document`.

    Args:
        document: the content.
        figures: pictures by part: ``"budget"``, ``"membership"``, ``"reconstruction"``, or a section's key.
    """
    figures = figures or {}
    parts = [*_guarantee(document), *_bounds(document, figures), *_utility(document), *_sections(document, figures)]
    parts += [*_uncovered(document), *_technical(document)]
    title = f"Privacy report: {document['model']['name']}"
    contents = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in parts)
    body = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(heading)}</h2>{inner}</section>'
        for anchor, heading, inner in parts
    )
    style = files("lightning_dp.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f"<header><h1>{escape(title)}</h1><p>{_subtitle(document)}</p></header>\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f'<main id="main">{body}</main>\n'
        f"<footer><p>Written {escape(document['created'])} by lightning-dp. The same numbers are in report.json.</p></footer>\n"
        "</body>\n</html>\n"
    )


def _subtitle(document: Mapping[str, Any]) -> str:
    count = document["model"].get("parameters")
    return escape("" if count is None else f"{count:,} parameters").replace(",", "\N{THIN SPACE}")


def _guarantee(document: Mapping[str, Any]) -> Iterable[Part]:
    kind = "no" if not document["private"] else "weak" if warnings(document) else "yes"
    headline = {
        "yes": "Differentially private",
        "weak": "Differentially private, with a weak guarantee",
        "no": "No privacy guarantee",
    }[kind]
    box = f'<div class="verdict {kind}"><p><strong>{headline}.</strong></p>{_paragraphs(verdict(document))}</div>'
    needed = assumptions(document)
    box += _table("At a glance", *glance(document))
    yield "guarantee", "What is guaranteed", box + (f"<h3>It holds if</h3>{_list(needed)}" if needed else "")
    if document["guarantee"] is not None:
        yield "limits", "What eps does not say", _list(limits())


def _bounds(document: Mapping[str, Any], figures: Figures) -> Iterable[Part]:
    found = document["membership"]
    inner = _paragraphs(membership_sentences(document))
    if found is not None:
        rows = [(f"{100 * row['fpr']:g} %", percent(row["tpr"])) for row in found["at"]]
        inner += _table(
            "Upper bounds on membership attacks", ("others wrongly accused", "members found, at most"), rows
        )
    yield "membership", "Can an attacker tell who was in?", inner + _figures(figures.get("membership", ()))
    found = document["reconstruction"]
    if found is not None:
        text = (
            "An attacker may try to recover a record. How well that can go depends on what it knows already: "
            f"here a blind guess would succeed with a chance of {one_in(found['kappa']) if found['kappa'] else '0'}."
        )
        attackers = [
            (row["name"], chance(row["probability"]), "yes" if row["is_guarantee"] else "no", row["meaning"])
            for row in found["rows"]
        ]
        table = _table(
            "Reconstruction, from the strongest attacker to weaker ones",
            ("attacker", "chance, at most", "guaranteed", "meaning"),
            attackers,
        )
        pictures = _figures(figures.get("reconstruction", ()))
        yield "reconstruction", "Can a record be reconstructed?", _paragraphs([text]) + table + pictures
    elif document["guarantee"] is None:
        text = (
            "Without differential privacy nothing bounds the chance that a record is reconstructed: count with 100 %."
        )
        yield "reconstruction", "Can a record be reconstructed?", _paragraphs([text])
    history = document["budget_over_time"]
    if history:
        rows = [(number(row["step"]), bound(row["eps"])) for row in _thinned(history)]
        table = _table("Privacy spent so far, upper bounds", ("training step", "eps"), rows)
        yield "budget", "Privacy spent over training", _figures(figures.get("budget", ())) + table


def _utility(document: Mapping[str, Any]) -> Iterable[Part]:
    baseline = document["baseline"]
    mine, theirs = document["utility"], {} if baseline is None else baseline["utility"]
    if not mine and not theirs:
        return
    names = list(dict.fromkeys((*mine, *theirs)))
    columns: tuple[str, ...] = ("metric", "this model")
    rows: list[tuple[str, ...]] = [(name, number(mine.get(name))) for name in names]
    if baseline is not None:
        columns += (f"baseline ({'private' if baseline['private'] else 'not private'})",)
        rows = [(*row, number(theirs.get(row[0]))) for row in rows]
    note = (
        "Measured on held-out data. The training guarantee does not cover the people in that data; publish these numbers only "
        "if that is acceptable."
    )
    yield "utility", "How good is the model?", _table("Metrics of held-out data", columns, rows) + _paragraphs([note])


def _sections(document: Mapping[str, Any], figures: Figures) -> Iterable[Part]:
    baseline = {} if document["baseline"] is None else {s["key"]: s for s in document["baseline"].get("sections", [])}
    for section in document["sections"]:
        inner = _paragraphs(section["paragraphs"]) + _figures(figures.get(section["key"], ()))
        inner += "".join(_table(t["caption"], t["columns"], t["rows"]) for t in section["tables"])
        if section["notes"]:
            inner += f"<h3>Remarks</h3>{_list(section['notes'])}"
        other = baseline.get(section["key"])
        if other is not None:
            inner += "<h3>Baseline</h3>" + _paragraphs(other["paragraphs"])
            inner += "".join(_table(f"Baseline: {t['caption']}", t["columns"], t["rows"]) for t in other["tables"])
        yield f"section-{section['key']}", section["title"], inner


def _uncovered(document: Mapping[str, Any]) -> Iterable[Part]:
    found = document["uncovered"]
    if not found:
        return
    text = "These numbers were released, or could be seen, without being part of eps:"
    rows = [(entry["what"], entry["why"], entry["remedy"]) for entry in found]
    table = _table("Released without being accounted", ("what", "why it is not covered", "what to do"), rows)
    yield "uncovered", "What was released beside the model", _paragraphs([text]) + table


def _technical(document: Mapping[str, Any]) -> Iterable[Part]:
    guarantee = document["guarantee"]
    inner = ""
    if guarantee is not None:
        inner += _table("Settings of the private training", ("setting", "value"), settings_rows(guarantee))
    if document["versions"]:
        inner += _table("Versions", ("package", "version"), list(document["versions"].items()))
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in glossary())
    yield "technical", "Technical details and terms", inner + f"<h3>Terms</h3><dl>{terms}</dl>"


def _thinned(rows: Sequence[Any], most: int = 8) -> list[Any]:
    """At most so many rows, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _figures(found: Iterable[Figure]) -> str:
    return "".join(f"<figure>{f.svg}<figcaption>{escape(f.title)}</figcaption></figure>" for f in found)


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    # An empty corner is no header: it would be read aloud as one without a name.
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in columns)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{_align(cell)}>{escape(number(cell))}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(number(first))}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _align(cell: Any) -> str:
    text = number(cell)
    short = text[:1].isdigit() or text[:1] in "-\N{EN DASH}"
    return ' class="number"' if short and len(text) < 14 else ""

"""The report of a run: one page, one JSON file, one model card."""

from __future__ import annotations

from lightning_dp.report.card import render_card
from lightning_dp.report.document import SCHEMA, VERSION, build_document, load_document, schema
from lightning_dp.report.figures import figure_of, new_figure
from lightning_dp.report.page import render_page
from lightning_dp.report.section import Figure, Reports, Section, Table

__all__ = (
    "SCHEMA",
    "VERSION",
    "Figure",
    "Reports",
    "Section",
    "Table",
    "build_document",
    "figure_of",
    "load_document",
    "new_figure",
    "render_card",
    "render_page",
    "schema",
)

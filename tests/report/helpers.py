"""Documents of runs of every kind, without a training, and a reader of pages that uses nothing of the package."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    PrivacySettings,
    PrivacySpent,
    privacy_spent,
    risk_corridor,
)
from lightning_dp.report import Section, Table, build_document

VOID = {"meta", "link", "br", "img", "hr", "input"}
HEADINGS = ("h1", "h2", "h3", "h4")


def entries(noise_multiplier: float = 0.8, sample_rate: float = 0.05, steps: int = 37) -> tuple[LedgerEntry, ...]:
    return (LedgerEntry(GaussianEvent(noise_multiplier, sample_rate), steps),) if steps else ()


def spent(delta: float = 1.23449e-5, **ledger: Any) -> PrivacySpent:
    return privacy_spent(entries(**ledger), delta)


def settings(**changes: Any) -> PrivacySettings:
    facts: dict[str, Any] = {
        "mechanism": "dp_sgd", "delta": 1.23449e-5, "noise_multiplier": 0.8, "max_grad_norm": 1.0, "clipping": "flat",
        "sampling": "poisson", "sample_rate": 0.05, "expected_batch_size": 50, "dataset_size": 1000, "accountant": "pld",
        "eps": 8.0,
    }  # fmt: skip
    return PrivacySettings(**{**facts, **changes})


def section(key: str = "calibration") -> Section:
    table = Table("ECE by group", ("group", "n", "ECE"), (("female <b>", 12, 0.25), ("male", 0, float("nan"))))
    return Section(key, key.title(), ("On a & b.",), (table,), notes=("No group was seen twice.",), data={"ece": 0.25})


def private_document(**changes: Any) -> dict[str, Any]:
    """Of a private run with everything in it."""
    run = changes.pop("spent", spent())
    facts: dict[str, Any] = {
        "model": {"name": "Net", "parameters": 1234567},
        "settings": settings(),
        "spent": run,
        "history": [(step, 0.01234449 * step) for step in range(1, 38)],
        "corridor": risk_corridor(run.entries, kappa=1e-3, dimension=784),
        "utility": {"test/accuracy": 0.8123, "test/auroc": float("nan")},
        "uncovered": [{"what": "training metrics (<loss>)", "why": "no noise", "remedy": "Do not publish them"}],
        "sections": [section()],
        "versions": {"torch": "2.14.1"},
    }
    return build_document(**{**facts, **changes})


def open_document(**changes: Any) -> dict[str, Any]:
    """Of a run without privacy."""
    facts: dict[str, Any] = {
        "model": {"name": "Net", "parameters": 10}, "settings": None, "spent": None, "utility": {"test/accuracy": 0.9},
    }  # fmt: skip
    return build_document(**{**facts, **changes})


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, or reading fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.tables: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)
        if tag in HEADINGS:
            self.headings.append((tag, ""))
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside != "style":
            self.text.append(data)
        if inside in HEADINGS:
            self.headings[-1] = (inside, self.headings[-1][1] + data)
        if inside == "caption":
            self.tables[-1]["caption"] += data
        if inside in ("td", "th"):
            self.tables[-1]["rows"][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag]

    def table(self, start: str) -> dict[str, Any]:
        (found,) = [table for table in self.tables if table["caption"].startswith(start)]
        return found

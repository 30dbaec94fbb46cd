"""The page: sound and self-contained HTML that a screen reader can walk through, and no number below the truth."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from lightning_dp.report import figure_of, new_figure, render_card, render_page
from lightning_dp.report.figures import draw_budget, draw_corridor, draw_roc
from lightning_dp.report.glance import glance
from lightning_dp.report.words import bound, one_in, percent
from tests.report.helpers import Page, open_document, private_document, settings, spent
from tests.report.test_document import KINDS


def figures(document: dict[str, Any]) -> dict[str, Any]:
    roc = document["membership"]["roc"]
    figure, axes = new_figure()
    axes.plot([0, 1], [0, 1])
    axes.set(title="a < b & c")
    return {
        "budget": [draw_budget([1, 37], [0.1, 2.0], 8.0)],
        "membership": [draw_roc(roc["fpr"], roc["tpr"])],
        "reconstruction": [
            draw_corridor([0.01, 0.1], [("worst case", [0.1, 0.5], True), ("relaxed", [0.1, 0.4], False)])
        ],
        "calibration": [figure_of(figure, "Reliability <all>", 'Says "well" calibrated')],
    }


@pytest.fixture(scope="module")
def full() -> str:
    document = private_document(baseline=private_document())
    return render_page(document, figures(document))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_gives_a_sound_page(kind: str) -> None:
    page = Page(render_page(KINDS[kind]()))
    assert [tag for tag, _ in page.headings].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_nothing_comes_from_elsewhere_and_nothing_runs(full: str) -> None:
    page = Page(full)
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("img") + page.all("object")
    assert (
        re.search(r"https?:|//|@import|javascript:", re.sub(r"<style>.*?</style>", "", full, flags=re.DOTALL)) is None
    )
    assert "@import" not in full
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", full))
    for _, found in page.elements:
        assert not [name for name in found if name.startswith("on")]
        assert all((found.get(name) or "#").startswith("#") for name in ("href", "src"))


def test_it_can_be_walked_through(full: str) -> None:
    page = Page(full)
    names = [found["id"] for _, found in page.elements if "id" in found]
    assert len(names) == len(set(names))
    targets = [str(found["href"])[1:] for found in page.all("a")]
    labels = [label for _, found in page.elements for label in str(found.get("aria-labelledby") or "").split()]
    assert set(targets) <= set(names)
    assert set(labels) <= set(names)
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(page.all(tag)) == 1 for tag in ("header", "nav", "main", "footer"))
    assert page.all("a")[0]["href"] == "#main"  # the first stop of the keyboard skips the contents
    assert len(targets) == 1 + len([tag for tag, _ in page.headings if tag == "h2"])


def test_every_table_has_a_caption_and_every_header_a_scope(full: str) -> None:
    page = Page(full)
    assert len(page.tables) >= 7
    assert all(table["caption"] for table in page.tables)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert all(len({len(row) for row in table["rows"]}) == 1 for table in page.tables)


def test_every_figure_is_there_and_is_read_aloud(full: str) -> None:
    page = Page(full)
    drawings = page.all("svg")
    assert len(drawings) == len(page.all("figure")) == len(page.all("figcaption")) == 4
    assert all(found["role"] == "img" and found["aria-labelledby"] for found in drawings)
    assert full.count("<desc ") == 4
    assert "Says &quot;well&quot; calibrated" in full
    assert "currentColor" in full
    assert "#123457" not in full


def test_what_users_name_cannot_break_the_page(full: str) -> None:
    assert "<loss>" not in full
    assert "female <b>" not in full
    text = "".join(Page(full).text)
    assert "training metrics (<loss>)" in text
    assert "female <b>" in text


@pytest.mark.parametrize(
    "probability", [0.0, 1e-300, 3.1e-12, 1e-9, 1.234e-5, 0.001, 0.00999999, 0.0123456, 0.5, 0.99951, 1.0]
)
def test_percentages_are_not_rounded_down(probability: float) -> None:
    text = percent(probability)
    assert text.endswith(" %")
    assert len(text) < 14
    assert float(text[:-2]) >= 100 * probability * (1 - 1e-12)
    assert float(text[:-2]) <= 100 * probability * 1.11 + 1e-7
    assert (float(text[:-2]) == 0.0) == (probability == 0.0)


def test_percentages_of_many_numbers_are_not_rounded_down() -> None:
    for probability in np.random.default_rng(0).random(2000) ** 6:
        assert float(percent(float(probability))[:-2]) >= 100 * probability * (1 - 1e-12)


def numbers_after(text: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


@pytest.mark.parametrize("steps", [3, 11, 37, 200])
def test_no_shown_eps_is_below_the_true_one(steps: int) -> None:
    run = spent(steps=steps)
    document = private_document(spent=run, history=[(s, run.eps * s / steps) for s in range(1, steps + 1)])
    page, card = Page(render_page(document)), render_card(document)
    shown = [float(row[1]) for row in page.table("Settings").get("rows") if row[0] == "eps"]
    shown += numbers_after("".join(page.text), r"eps = ([\d.]+) at") + numbers_after(card, r"\| eps \| ([\d.]+) \|")
    shown += numbers_after(card, r"eps = ([\d.]+) at")
    assert len(shown) >= 4
    assert min(shown) >= run.eps
    assert max(shown) <= run.eps * 1.001
    rows = page.table("Privacy spent").get("rows")[1:]
    assert rows[0][0] == "1"
    assert rows[-1][0] == str(steps)
    for step, value in rows:
        assert float(value) >= run.eps * int(step) / steps


def test_no_shown_delta_is_below_the_true_one() -> None:
    document = private_document()
    page, card = Page(render_page(document)), render_card(document)
    shown = [float(row[1]) for row in page.table("Settings").get("rows") if row[0] == "delta"]
    shown += numbers_after("".join(page.text), r"delta = ([\d.e-]+)\b:") + numbers_after(
        card, r"\| delta \| ([\d.e-]+) \|"
    )
    assert len(shown) == 3
    assert min(shown) >= 1.23449e-5


def test_attack_tables_show_the_documents_bounds() -> None:
    document = private_document()
    page = Page(render_page(document))
    rows = page.table("Upper bounds on membership")["rows"][1:]
    for row, at in zip(rows, document["membership"]["at"], strict=True):
        assert float(row[0][:-2]) == pytest.approx(100 * at["fpr"])
        assert 100 * at["tpr"] <= float(row[1][:-2]) <= 100 * at["tpr"] + 0.11
    rows = page.table("Reconstruction")["rows"][1:]
    assert [row[2] for row in rows] == ["yes", "no", "no"]  # who is bounded by the guarantee, and who is not
    for row, attacker in zip(rows, document["reconstruction"]["rows"], strict=True):
        assert float(row[1].removeprefix("below ")[:-2]) >= 100 * attacker["probability"] * (1 - 1e-12)
    assert rows[2][1].startswith("below")  # what is too small to be computed is not called impossible


@pytest.mark.parametrize("kind", ["not private", "no noise"])
def test_without_a_guarantee_page_and_card_say_so(kind: str) -> None:
    document = KINDS[kind]()
    for text in (" ".join(Page(render_page(document)).text), render_card(document)):
        assert "personal data" in text
        assert "eps is infinite" in text
        assert "Differentially private" not in text
        assert "is limited" not in text
    assert "No privacy guarantee" in render_page(document)


def test_private_beside_baseline() -> None:
    document = private_document(baseline=open_document(utility={"test/accuracy": 0.9, "only/theirs": 2.0}))
    for text in (" ".join(Page(render_page(document)).text), render_card(document)):
        assert "0.8123" in text
        assert "0.9" in text
        assert "only/theirs" in text
        assert "baseline" in text


def test_settings_that_weaken_the_guarantee_are_named() -> None:
    weak = private_document(spent=spent(delta=2e-3))
    for text in (" ".join(Page(render_page(weak)).text), render_card(weak)):
        assert "delta is not below 1/n" in text
    fine = render_card(private_document())
    assert "guarantees little" not in fine
    assert "not below 1/n" not in fine
    large = private_document(spent=spent(noise_multiplier=0.3, steps=200))
    assert large["guarantee"]["eps"] > 20
    assert "guarantees little by itself" in render_card(large)


def test_the_table_at_a_glance_sets_a_run_beside_its_baseline() -> None:
    document = private_document(baseline=open_document())
    columns, rows = glance(document)
    assert columns == ("", "this model", "baseline")
    assert rows[0] == ("guarantee", f"eps = {bound(document['guarantee']['eps'])}", "none")
    assert rows[1][1:] == (one_in(1.23449e-5), "\N{EN DASH}")
    assert rows[2][2] == rows[3][2] == "100 %"  # nothing excludes it, and a dash would hide that
    gamma = document["reconstruction"]["rows"][0]["probability"]
    assert float(rows[3][1].split(" %")[0]) >= 100 * gamma
    tpr = document["membership"]["at"][1]["tpr"]
    assert 100 * tpr <= float(rows[2][1][:-2]) <= 100 * tpr + 0.11
    assert [row[0] for row in Page(render_page(document)).table("At a glance")["rows"][1:]] == [row[0] for row in rows]
    assert "| guarantee | eps = " in render_card(document)


def test_labels_that_are_not_covered_are_named_beside_the_guarantee() -> None:
    document = private_document(settings=settings(labels_covered=False))
    page = render_page(document)
    assert 'class="verdict weak"' in page
    for text in (" ".join(Page(page).text), render_card(document)):
        assert "Labels (diagnoses, outcomes) were used without protection" in text
        assert ", without the labels" in text
    assert "without protection" not in render_card(private_document())


def test_weak_guarantees_are_not_shown_as_strong_ones() -> None:
    assert 'class="verdict yes"' in render_page(private_document())
    assert 'class="verdict weak"' in render_page(private_document(spent=spent(delta=2e-3)))
    assert 'class="verdict weak"' in render_page(private_document(spent=spent(noise_multiplier=0.3, steps=200)))
    assert 'class="verdict no"' in render_page(open_document())


@pytest.mark.parametrize("probability", [0.9, 0.11, 1e-2, 1.23449e-5, 1.67e-6, 1e-12])
def test_one_in_so_many_is_not_rarer_than_the_truth(probability: float) -> None:
    times = int(re.sub(r"\D", "", one_in(probability).removeprefix("1 in ")))
    assert 0.9 / probability <= times <= 1 / probability * (1 + 1e-9)

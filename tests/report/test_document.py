"""report.json: it obeys its schema for every kind of run, and holds the ledger's numbers and no smaller ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lightning_dp.accounting import membership_bound, privacy_spent, reconstruction_bound, risk_corridor
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.report import build_document, load_document, schema
from tests.report.helpers import entries, open_document, private_document, settings, spent

KINDS = {
    "private": private_document,
    "not private": open_document,
    "no step": lambda: private_document(
        spent=spent(steps=0), history=[], corridor=risk_corridor((), dataset_size=1000), settings=settings(eps=None)
    ),
    "no noise": lambda: private_document(
        spent=spent(noise_multiplier=0.0),
        corridor=risk_corridor(entries(noise_multiplier=0.0), dataset_size=1000),
        settings=settings(eps=None, noise_multiplier=0.0),
        history=[(1, math.inf)],
    ),
    "with baseline": lambda: private_document(baseline=open_document()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_document_obeys_its_schema_and_is_strict_json(kind: str) -> None:
    document = KINDS[kind]()
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    "fault",
    [{"private": "yes"}, {"version": 2}, {"secret": 1}, {"membership": {"advantage": 1.5, "at": [], "roc": {}}}],
)
def test_schema_finds_faults(fault: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**private_document(), **fault}, schema())


def test_numbers_are_the_ledgers() -> None:
    document, ledger = private_document(), entries()
    assert document["private"] is True
    assert document["guarantee"]["eps"] == privacy_spent(ledger, 1.23449e-5).eps
    assert document["guarantee"]["delta"] == 1.23449e-5
    assert document["guarantee"]["eps_budget"] == 8.0
    assert document["guarantee"]["steps"] == 37
    assert document["reconstruction"]["rows"][0]["probability"] == reconstruction_bound(ledger, 1e-3).gamma
    bound = membership_bound(ledger, (0.001, 0.01, 0.1))
    assert document["membership"]["advantage"] == pytest.approx(bound.advantage, abs=1e-9)
    assert [row["fpr"] for row in document["membership"]["at"]] == [0.001, 0.01, 0.1]
    # Two upper bounds of one number: the envelope of 2001 lines, and the same at the rate itself, which is a little tighter.
    for row, tpr in zip(document["membership"]["at"], bound.tpr, strict=True):
        assert tpr - 1e-9 <= row["tpr"] <= 1.001 * tpr
    assert [row["is_guarantee"] for row in document["reconstruction"]["rows"]] == [True, False, False]


def test_a_run_without_steps_has_spent_nothing() -> None:
    document = KINDS["no step"]()
    assert document["guarantee"]["eps"] == 0.0
    assert document["membership"]["advantage"] == 0.0
    assert document["reconstruction"]["rows"][0]["probability"] == pytest.approx(1e-3)


def test_a_run_without_noise_is_not_called_private() -> None:
    document = KINDS["no noise"]()
    assert document["private"] is False
    assert document["guarantee"]["eps"] is None  # infinite, which JSON cannot hold
    assert document["membership"]["advantage"] == 1.0
    assert document["reconstruction"]["rows"][0]["probability"] == 1.0


def test_the_baseline_does_not_bring_its_own_baseline() -> None:
    document = private_document(baseline=private_document(baseline=open_document()))
    assert "baseline" not in document["baseline"]
    jsonschema.validate(document, schema())


def test_a_baseline_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    document = open_document()
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert load_document(tmp_path) == load_document(tmp_path / "report.json") == document


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no report at .*run the baseline"),
        ("{", "cannot be read"),
        ("[]", "not a report"),
        ('{"schema": "another"}', "not a report"),
        ('{"schema": "lightning-dp-report", "version": 0}', "version 0 .* this is 1"),
        ('{"schema": "lightning-dp-report", "version": 1}', "incomplete"),
    ],
)
def test_a_baseline_that_is_none_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PrivacyConfigError, match=message):
        load_document(path)


def test_a_date_can_be_given() -> None:
    from datetime import date

    document = build_document(model={"name": "Net"}, settings=None, spent=None, created=date(2026, 1, 2))
    assert document["created"] == "2026-01-02"

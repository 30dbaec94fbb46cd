"""Monitors in a report: sections with the results' numbers, in the page, the JSON file and the model card."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_dp import CalibrationMonitor, DPStrategy, FairnessMonitor, Members, MultiplicityMonitor, RiskReport
from lightning_dp.metrics import Groups
from lightning_dp.report import Reports
from tests.callbacks.helpers import CLASSES, GROUPS, Grouped, loader, network, trainer

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore:.*these have no value:UserWarning")


def monitors(groups: Groups | None = GROUPS, private: bool = False, **arguments: Any) -> list[Any]:
    def fit(index: int) -> tuple[Any, Grouped, Any]:
        run = trainer(strategy=DPStrategy(noise_multiplier=1.0) if private else "auto")
        return run, Grouped(network(index)), loader()

    members = Members.trained(fit, 2)
    found: list[Any] = [CalibrationMonitor("multiclass", CLASSES, groups=groups, **arguments)]
    found += [FairnessMonitor(groups, "multiclass", CLASSES, n_boot=20, **arguments)] if groups is not None else []
    return [*found, MultiplicityMonitor(members, "multiclass", CLASSES, groups=groups, **arguments)]


def test_without_a_result_there_is_no_section() -> None:
    for monitor in monitors():
        assert isinstance(monitor, Reports)
        assert monitor.report_sections(None) == ()


@pytest.mark.parametrize("private", [False, True])
def test_the_report_holds_all_three(private: bool, tmp_path: Path) -> None:
    attached = monitors(private=private)
    plugin = DPStrategy(noise_multiplier=1.0) if private else "auto"
    run = trainer(*attached, RiskReport(tmp_path), strategy=plugin)
    module = Grouped()
    run.fit(module, loader(), loader())
    run.test(module, loader(), verbose=False)
    calibration, fairness, multiplicity = attached
    (section,) = fairness.report_sections(run)
    assert section.key == "fairness"
    assert section.data["stage"] == "test"
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["male, old"][1] == fairness.result.row("male, old").n
    assert rows["male, old"][2] == str(fairness.result.row("male, old").accuracy)
    json.dumps([s.data for m in attached for s in m.report_sections(run)], allow_nan=False)

    (section,) = multiplicity.report_sections(run)
    assert any(str(multiplicity.budget) in text for text in section.paragraphs)
    assert section.tables[-1].rows[-1] == ("all together", multiplicity.budget.eps)
    assert (multiplicity.budget.eps < math.inf) == private
    assert section.data["budget"]["composition"] == ("added" if private else "none")

    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    page = next(tmp_path.glob("*.html")).read_text()
    assert {"calibration", "fairness", "multiplicity"} <= {part["key"] for part in document["sections"]}
    for title in ("Reliability on the test data", "Accuracy by group on the test data", "Arbitrary predictions"):
        assert title in page
    assert calibration.report_sections(run)[0].figures[0].svg in page


def test_validation_stands_in_for_a_test_and_a_group_never_seen_is_named() -> None:
    groups = Groups({"sex": ["female", "male", "unknown"], "age": ["young", "old"]})
    attached = monitors(groups, stages=["val"], prefix="sites")
    run = trainer(*attached)
    run.validate(Grouped(), loader(), verbose=False)
    for monitor in attached:
        (section,) = monitor.report_sections(run)
        assert section.key.endswith("-sites")
        assert section.data["stage"] == "validation"
        assert any("unknown, old" in note for note in section.notes)
        assert "unknown, old" in {row[0] for row in section.tables[0].rows}


def test_without_groups_there_is_one_row() -> None:
    attached = monitors(None)
    run = trainer(*attached)
    run.test(Grouped(returns=lambda f: {k: v for k, v in f.items() if k != "groups"}), loader(), verbose=False)
    for monitor in attached:
        (section,) = monitor.report_sections(run)
        assert [row[0] for row in section.tables[0].rows] == ["all"]

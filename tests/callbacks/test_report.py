"""RiskReport on true runs: private, without privacy, without noise, and without a training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp import DPStrategy, PrivacyConfigError, PrivacyWarning, ReconstructionRiskMonitor, RiskReport
from lightning_dp.accounting import reconstruction_bound
from lightning_dp.report import Section, schema
from tests.report.helpers import Page
from tests.strategies.helpers import Tiny, dataset, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def held_out() -> DataLoader[Any]:
    return DataLoader(dataset(32, seed=1), batch_size=16)


class Logging(Tiny):
    """Logs the loss of private batches, as most modules do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss


class Extra(Callback):
    """Contributes a part without knowing the report."""

    def report_sections(self, trainer: Any) -> Sequence[Section]:
        return [Section("fairness", "Is it fair?", ("Nobody was asked.",))]


def run(
    folder: Path, plugin: Any, *callbacks: Callback, module: Any = None, test: bool = True, **options: Any
) -> tuple[Any, RiskReport, dict[str, Any]]:
    report = RiskReport(folder, **options)
    fitted = trainer(plugin, callbacks=[*callbacks, report])
    module = Tiny() if module is None else module
    fitted.fit(module, loader(), held_out())
    if test:
        fitted.test(module, held_out(), verbose=False)
    document = json.loads((folder / "report.json").read_text())
    jsonschema.validate(document, schema())
    Page((folder / "report.html").read_text())
    return fitted, report, document


def test_a_private_run_is_reported_with_its_ledgers_numbers(tmp_path: Path) -> None:
    fitted, report, document = run(tmp_path, DPStrategy(eps=4), Extra(), module=Logging())
    spent = fitted.strategy.privacy_spent()
    assert document == report.document
    assert document["private"] is True
    assert document["guarantee"]["eps"] == spent.eps
    assert document["guarantee"]["steps"] == spent.steps == fitted.strategy.ledger.steps
    assert document["reconstruction"]["kappa"] == 1 / 64
    gamma = reconstruction_bound(fitted.strategy.ledger.entries, 1 / 64).gamma
    assert document["reconstruction"]["rows"][0]["probability"] == gamma
    history = document["budget_over_time"]
    assert [row["step"] for row in history] == [4, 8]
    assert history[-1]["eps"] == pytest.approx(spent.eps, rel=1e-6)
    assert [section["key"] for section in document["sections"]] == ["fairness"]
    page = (tmp_path / "report.html").read_text()
    assert "Nobody was asked." in page
    assert page.count("<svg") == 3


def test_private_metrics_are_named_and_their_values_are_not_shown(tmp_path: Path) -> None:
    fitted, _, document = run(tmp_path, DPStrategy(eps=4), module=Logging())
    assert set(document["utility"]) == {"val_loss", "val_acc"} | set(fitted.callback_metrics)
    assert not [name for name in document["utility"] if "train" in name]
    texts = [entry["what"] for entry in document["uncovered"]]
    assert any("train_loss" in text for text in texts)
    assert any("hyper-parameters" in text for text in texts)
    assert "train_loss" in (tmp_path / "model_card.md").read_text()


def test_it_is_written_after_fit_and_completed_after_test(tmp_path: Path) -> None:
    fitted, report, before = run(tmp_path, DPStrategy(eps=4), test=False)
    assert set(before["utility"]) == {"val_loss", "val_acc"}
    value = before["utility"]["val_acc"]
    assert value == pytest.approx(float(fitted.callback_metrics["val_acc"]))

    class Testing(Tiny):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_acc", 0.25)

    fitted.test(Testing(), held_out(), verbose=False)
    after = json.loads((tmp_path / "report.json").read_text())
    assert after["utility"] == {**before["utility"], "test_acc": 0.25}
    assert after["guarantee"] == before["guarantee"]


def test_private_beside_its_baseline(tmp_path: Path) -> None:
    with pytest.warns(PrivacyWarning, match="nothing bounds"):
        _, _, plain = run(tmp_path / "plain", "auto", ReconstructionRiskMonitor())
    assert plain["private"] is False
    assert plain["guarantee"] is plain["membership"] is plain["reconstruction"] is None
    page = (tmp_path / "plain" / "report.html").read_text()
    assert "without differential privacy" in page
    assert "count with 100 %" in page
    _, _, both = run(tmp_path / "private", DPStrategy(eps=4), baseline=tmp_path / "plain")
    assert both["baseline"]["utility"] == plain["utility"]
    table = Page((tmp_path / "private" / "report.html").read_text()).table("At a glance")
    assert table["rows"][1][2] == "none"


@pytest.mark.filterwarnings("ignore:noise_multiplier=0:lightning_dp.errors.PrivacyWarning")
@pytest.mark.filterwarnings("ignore:.*not private:lightning_dp.errors.PrivacyWarning")
def test_a_run_without_noise_has_no_guarantee(tmp_path: Path) -> None:
    _, _, document = run(tmp_path, DPStrategy(noise_multiplier=0.0))
    assert document["private"] is False
    assert document["reconstruction"]["rows"][0]["probability"] == 1.0
    assert "No privacy guarantee" in (tmp_path / "report.html").read_text()


def test_a_model_whose_training_was_not_seen_is_not_reported_on(tmp_path: Path) -> None:
    run(tmp_path, DPStrategy(eps=4), test=False)
    before = (tmp_path / "report.html").read_text()
    later = trainer("auto", callbacks=[RiskReport(tmp_path)])
    with pytest.warns(PrivacyWarning, match="saw no training"):
        later.test(Tiny(), held_out(), verbose=False)
    assert (tmp_path / "report.html").read_text() == before


def test_the_monitors_corridor_is_the_reports(tmp_path: Path) -> None:
    monitor = ReconstructionRiskMonitor(kappa=0.1, dimension=6)
    _, _, document = run(tmp_path, DPStrategy(eps=4), monitor)
    assert document["reconstruction"]["kappa"] == 0.1
    assert [row["name"] for row in document["reconstruction"]["rows"]] == [
        "worst case", "relaxed threat model", "from scratch",
    ]  # fmt: skip
    assert monitor.corridor is not None
    figure, axes = monitor.plot()
    assert len(axes.patches) == 3
    assert re.search("guarantee", axes.get_yticklabels()[-1].get_text())


def test_a_missing_baseline_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="no report at"):
        RiskReport(tmp_path, baseline=tmp_path / "nowhere")

"""ReconstructionRiskMonitor: the ledger's numbers in the logger under names that say what they are."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_dp import DPStrategy, PrivacyConfigError, PrivacyWarning, ReconstructionRiskMonitor
from lightning_dp.accounting import membership_bound, reconstruction_bound, relaxed_risk
from tests.strategies.helpers import Tiny, dataset, loader, trainer

GAMMA = "privacy/reconstruction_gamma"


def logged(folder: Path, name: str) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def fitted(folder: Path, plugin: Any, monitor: ReconstructionRiskMonitor, **options: Any) -> Any:
    run = trainer(plugin, callbacks=[monitor], logger=CSVLogger(folder), log_every_n_steps=1, max_epochs=3, **options)
    run.fit(Tiny(), loader(), DataLoader(dataset(16), batch_size=16))
    return run


def test_the_risk_of_every_epoch_is_the_ledgers_and_grows(tmp_path: Path) -> None:
    monitor = ReconstructionRiskMonitor(dimension=6)
    run = fitted(tmp_path, DPStrategy(noise_multiplier=1.0), monitor, num_sanity_val_steps=2)
    entries = run.strategy.ledger.entries
    values = logged(tmp_path, GAMMA)
    assert len(values) == 4  # three epochs, and the end
    assert values[:3] == sorted(values[:3])
    assert values[2] == pytest.approx(values[3], rel=1e-6)  # Lightning logs in single precision
    assert values[0] > 1 / 64
    true = reconstruction_bound(entries, 1 / 64).gamma
    assert values[-1] == true
    assert logged(tmp_path, "privacy/membership_advantage") == [membership_bound(entries).advantage]
    assert logged(tmp_path, "privacy/reconstruction_relaxed_no_guarantee") == [relaxed_risk(entries, 1 / 64).gamma]
    assert len(logged(tmp_path, "privacy/reconstruction_from_scratch_no_guarantee")) == 1


def test_it_can_be_computed_at_the_end_alone(tmp_path: Path) -> None:
    monitor = ReconstructionRiskMonitor(kappa=0.1, every_n_epochs=0)
    run = fitted(tmp_path, DPStrategy(noise_multiplier=1.0), monitor)
    assert logged(tmp_path, GAMMA) == [reconstruction_bound(run.strategy.ledger.entries, 0.1).gamma]


def test_without_privacy_the_risk_is_one_and_is_said(tmp_path: Path) -> None:
    monitor = ReconstructionRiskMonitor()
    with pytest.warns(PrivacyWarning, match="nothing bounds"):
        fitted(tmp_path, "auto", monitor)
    assert logged(tmp_path, GAMMA) == [1.0, 1.0, 1.0]
    with pytest.raises(PrivacyConfigError, match="after a private fit"):
        monitor.plot()


@pytest.mark.parametrize(
    "arguments",
    [{"kappa": -0.1}, {"kappa": 1.5}, {"dimension": 0}, {"data_norm": -1.0, "dimension": 3}, {"every_n_epochs": -1},
     {"every_n_epochs": 1.5}],
)  # fmt: skip
def test_values_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(PrivacyConfigError):
        ReconstructionRiskMonitor(**arguments)

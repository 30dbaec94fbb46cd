"""The accountant callback: eps where it is looked for, and an honest list of what eps does not cover."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy, PrivacyAccountant, PrivacyWarning
from lightning_dp.accounting import EpsilonMeter, LedgerEntry
from lightning_dp.callbacks import uncovered_releases


class Net(LightningModule):
    def __init__(self, logs: bool = False, plateau: str | None = None) -> None:
        super().__init__()
        self.net, self.logs, self.plateau = torch.nn.Linear(4, 3), logs, plateau

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.logs:
            self.log("loss_of_batch", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        if self.logs:
            self.log("epoch_number", 1.0)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.plateau is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.plateau}}


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,))), batch_size=8)


def trainer(callbacks: list[Callback], **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "strategy": DPStrategy(eps=4),
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=callbacks, **{**settings, **options})


def test_eps_of_every_step_is_in_the_logger_and_grows(tmp_path: Path) -> None:
    run = trainer([PrivacyAccountant()], logger=CSVLogger(tmp_path))
    run.fit(Net(), loader())
    with (Path(run.logger.log_dir) / "metrics.csv").open() as file:
        values = [float(row["privacy/epsilon"]) for row in csv.DictReader(file) if row["privacy/epsilon"]]
    assert len(values) == run.global_step == 10
    assert values == sorted(values)
    assert values[-1] == pytest.approx(run.strategy.privacy_spent().eps, abs=1e-6)


def test_no_logged_eps_is_below_the_truth() -> None:
    seen: list[tuple[float, float]] = []

    class Compare(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append((trainer.strategy.epsilon(), trainer.strategy.privacy_spent().eps))

    trainer([PrivacyAccountant(), Compare()]).fit(Net(), loader())
    assert len(seen) == 10
    assert all(shown >= truth - 1e-9 for shown, truth in seen)


def test_eps_is_in_the_progress_bar() -> None:
    run = trainer([PrivacyAccountant()])
    run.fit(Net(), loader())
    assert run.progress_bar_metrics["privacy/epsilon"] == pytest.approx(run.strategy.privacy_spent().eps, abs=1e-6)
    quiet = trainer([PrivacyAccountant(prog_bar=False)])
    quiet.fit(Net(), loader())
    assert "privacy/epsilon" not in quiet.progress_bar_metrics
    assert "privacy/epsilon" in quiet.callback_metrics


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_settings_are_in_the_loggers_hyper_parameters(kind: Any, tmp_path: Path) -> None:
    run = trainer([PrivacyAccountant()], logger=kind(tmp_path))
    run.fit(Net(), loader())
    saved = yaml.safe_load((Path(run.logger.log_dir) / "hparams.yaml").read_text())
    assert saved["privacy/eps"] == 4
    assert saved["privacy/delta"] == pytest.approx(1 / 400)
    assert saved["privacy/sample_rate"] == pytest.approx(8 / 40)
    assert saved["privacy/relation"] == "add_or_remove_one"
    assert saved["privacy/noise_multiplier"] == run.strategy.noise_multiplier


def test_summary_names_everything_that_belongs_beside_eps(caplog: pytest.LogCaptureFixture) -> None:
    callback = PrivacyAccountant()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer([callback]).fit(Net(), loader())
    assert callback.spent is not None
    for word in (
        "eps = ",
        "delta = ",
        "add or remove one",
        "poisson",
        "q = 0.2",
        "n = 40",
        "pld",
        "Not covered by eps",
    ):
        assert word in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer([PrivacyAccountant(summary=False)]).fit(Net(), loader())
    assert "Not covered" not in caplog.text


def test_training_metrics_are_named() -> None:
    callback = PrivacyAccountant()
    trainer([callback]).fit(Net(logs=True), loader(), loader())
    text = "\n".join(map(str, callback.releases))
    assert "loss_of_batch" in text
    assert "epoch_number" in text
    assert "validation metrics" in text
    assert "privacy/epsilon" not in text


def test_a_silent_run_lists_only_the_hyper_parameters() -> None:
    callback = PrivacyAccountant()
    trainer([callback]).fit(Net(), loader())
    assert [release.what for release in callback.releases] == ["the choice of hyper-parameters"]


def test_monitors_of_training_data_are_named(tmp_path: Path) -> None:
    """A monitor whose name does not give it away: only the run shows what it watches."""
    callback = PrivacyAccountant()
    checkpoint = ModelCheckpoint(tmp_path, monitor="loss_of_batch", every_n_train_steps=2)
    stop = EarlyStopping(monitor="loss_of_batch", patience=100, check_on_train_epoch_end=True)
    run = trainer([callback, checkpoint, stop], enable_checkpointing=True)
    run.fit(Net(logs=True, plateau="loss_of_batch"), loader())
    text = "\n".join(map(str, callback.releases))
    assert "ModelCheckpoint(monitor='loss_of_batch')" in text
    assert "EarlyStopping(monitor='loss_of_batch')" in text
    assert "ReduceLROnPlateau on 'loss_of_batch'" in text


def test_eps_may_be_monitored(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="privacy/epsilon", every_n_train_steps=2)
    trainer([PrivacyAccountant(), checkpoint], enable_checkpointing=True).fit(Net(), loader())
    assert checkpoint.best_model_score is not None


def test_beside_an_ordinary_strategy_it_says_so_and_trains_on() -> None:
    callback = PrivacyAccountant()
    run = trainer([callback], strategy="auto")
    with pytest.warns(PrivacyWarning, match="without differential privacy"):
        run.fit(Net(), loader())
    assert run.global_step == 10
    assert callback.spent is None
    assert "privacy/epsilon" not in run.callback_metrics


def test_two_accountants_or_none_spend_the_same() -> None:
    spent = []
    for count in (0, 1):
        strategy = DPStrategy(noise_multiplier=1.0)
        trainer([PrivacyAccountant() for _ in range(count)], strategy=strategy).fit(Net(), loader())
        spent.append(strategy.privacy_spent().eps)
    assert spent[0] == spent[1]


def test_releases_work_without_the_callback() -> None:
    run = trainer([])
    run.fit(Net(), loader())
    assert [r.what for r in uncovered_releases(run, ["acc"])][0] == "training metrics (acc)"


@pytest.mark.parametrize("every", [0, 3, 4, 50])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "balls_in_bins"])
def test_eps_between_two_rows_of_the_loggers_is_never_too_small(every: int, sampling: Any, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Compare(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append((float(trainer.callback_metrics["privacy/epsilon"]), trainer.strategy.privacy_spent().eps))

    run = trainer(
        [PrivacyAccountant(), Compare()],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=every,
        strategy=DPStrategy(noise_multiplier=2.0, sampling=sampling),
    )
    run.fit(Net(), loader())
    shown, truth = zip(*seen, strict=True)
    assert len(seen) == 10
    assert all(s >= t - 1e-6 for s, t in seen)
    assert shown[-1] == pytest.approx(truth[-1], rel=1e-6)
    assert all(s <= truth[-1] * 1.001 for s in shown), "more than what the run spends in the end"
    if every in (3, 4):
        with (Path(run.logger.log_dir) / "metrics.csv").open() as file:
            rows = {int(r["step"]): float(r["privacy/epsilon"]) for r in csv.DictReader(file) if r["privacy/epsilon"]}
        assert set(rows) == {step for step in range(10) if (step + 1) % every == 0}
        meter = EpsilonMeter(run.strategy.privacy_spent().delta)
        event = run.strategy.ledger.entries[0].event
        if sampling == "poisson":
            assert all(row <= meter.epsilon([LedgerEntry(event, step + 1)]) + 1e-6 for step, row in rows.items())

"""The liver recipe: its files run or parse, and the Decathlon reader takes a folder made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_dp import DPStrategy
from lightning_dp.cli import command_line
from lightning_dp.data import AbdominalPhantom, DecathlonDataModule
from lightning_dp.models import MoNet, UNet
from tests.data.test_decathlon import task

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "liver_segmentation"
TINY = [
    "--trainer.fast_dev_run=true",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.n_train=6",
    "--data.init_args.n_val=2",
    "--data.init_args.n_test=2",
    "--data.init_args.slices=3",
    "--data.init_args.batch_size=3",
]
SLICES = ["--trainer.strategy.init_args.unit=null", "--trainer.strategy.init_args.max_rows_per_unit=null"]
PLAIN = ["--trainer.strategy=auto", "--trainer.callbacks=null"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["lightning-dp"])
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize(
    "name, network, protected",
    [("config", MoNet, "unit_id"), ("unet", UNet, "unit_id"), ("unet", UNet, "sample"), ("config", MoNet, None)],
)
def test_runs(name: str, network: type, protected: str | None) -> None:
    overrides = {"unit_id": [], "sample": SLICES, None: PLAIN}[protected]
    run = command_line([f"--config={RECIPE / name}.yaml", *TINY, *overrides], run=False)
    assert isinstance(run.datamodule, AbdominalPhantom)
    assert isinstance(run.model.network, network)
    run.trainer.fit(run.model, run.datamodule)
    run.trainer.test(run.model, run.datamodule, verbose=False)
    if protected is not None:
        assert isinstance(run.trainer.strategy, DPStrategy)
        spent = run.trainer.strategy.privacy_spent()
        assert spent.unit == protected
        assert run.trainer.strategy.settings().dataset_size == (6 if protected == "unit_id" else 18)


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_scale_of_the_paper_parses_and_trains_on_a_folder_made_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    overrides = [
        "--trainer.accelerator=cpu",
        "--trainer.fast_dev_run=true",
        f"--data.init_args.root={tmp_path / 'Task03'}",
    ]
    tiny = ["size=8", "n_val=1", "n_test=1", "batch_size=2", "num_workers=0"]
    overrides += [f"--data.init_args.{setting}" for setting in tiny]
    overrides += ["--model.init_args.network.init_args.filters=4", "--trainer.strategy.init_args.delta=1e-2"]
    task(tmp_path / "Task03", 4)
    run = command_line(
        [f"--config={RECIPE / 'gpu.yaml'}", *overrides, "--trainer.enable_progress_bar=false"], run=False
    )
    assert isinstance(run.datamodule, DecathlonDataModule)
    assert (run.trainer.max_epochs, run.model.hparams.lr_schedule) == (1, "log_linear")
    run.trainer.fit(run.model, run.datamodule)

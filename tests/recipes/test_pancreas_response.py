"""The pancreas recipe: its stages at a tiny scale, and how two budgets combine."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.accounting import GaussianEvent, LedgerEntry, PrivacySpent, privacy_spent
from lightning_dp.cli import command_line
from tests.data.test_decathlon import task

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pancreas_response"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RUN: Any = script("pancreas")
FOLDS: Any = script("folds")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["lightning-dp"])
    monkeypatch.chdir(tmp_path)


def tiny() -> Any:
    counts = dict.fromkeys(("n_segmentation", "n_response", "n_val", "n_test"), 8)
    steps = dict.fromkeys(("segmentation_steps", "response_steps", "private_steps"), 1)
    batches = dict.fromkeys(("segmentation_batch_size", "response_batch_size", "private_batch_size"), 4)
    return RUN.Setting(**counts, **steps, **batches, size=8, crop=8)


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize("eps", [None, pytest.param(8.0, marks=pytest.mark.slow)])
def test_variants_run(eps: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    variants = RUN.VARIANTS if eps is None else RUN.VARIANTS[4:]
    (outcome,) = RUN.main(eps, [0], tiny(), variants, "val")
    assert list(outcome.auroc) == [variant.name for variant in variants]
    assert all(0 <= found.value <= 1 for found in outcome.auroc.values())
    printed = capsys.readouterr().out
    assert "AUC 0.800" in printed  # the ceiling
    if eps is None:
        assert outcome.spent is None
        assert "eps = inf" in printed
    else:
        assert all(spent.eps <= 8 for spent in outcome.spent)
        assert "parallel composition" in printed


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize("eps", [None, 8.0])
def test_the_encoder_is_frozen_and_then_trained(eps: float | None) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 1, 8, 8, 8), torch.arange(8) % 2)
    for steps, moves in ((2, False), (3, True)):
        task = RUN.ResponseTask(RUN.EncoderClassifier(RUN.unet(tiny()).encoder), lr=0.5, optimizer="sgd")
        before = [p.detach().clone() for p in task.backbone.parameters()]
        RUN.train(task, DataLoader(data, 4), steps, eps, 0.1, frozen_epochs=1)
        assert any(not torch.equal(p, old) for p, old in zip(task.backbone.parameters(), before, strict=True)) == moves


def test_folds_are_of_patients_and_keep_the_shares() -> None:
    torch.manual_seed(0)
    owners = torch.arange(60).repeat_interleave(2)
    labels = (torch.rand(60) < 0.3).long().repeat_interleave(2)
    folds = FOLDS.folds_of(labels, owners, 5, 0)
    assert torch.equal(torch.cat([test for _, test in folds]).sort().values, torch.arange(120))
    for train, test in folds:
        assert not set(owners[train].tolist()) & set(owners[test].tolist())
        assert len(train) + len(test) == 120
        assert abs(float(labels[test].float().mean() - labels.float().mean())) < 0.05


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_cross_validation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    setting = dataclasses.replace(tiny(), n_response=20, private_batch_size=8)
    (estimates,) = FOLDS.main(8.0, [0], 2, setting, RUN.VARIANTS[3:4])
    assert [len(found) for found in estimates.values()] == [2]
    assert all(found.n == 10 for found in estimates["localisation + transfer"])
    printed = capsys.readouterr().out
    assert "in 1 of the 2 trainings" in printed
    assert "every patient: eps = " in printed


def spent(steps: int, delta: float) -> PrivacySpent:
    return privacy_spent([LedgerEntry(GaussianEvent(1.0, 0.1, "poisson"), steps)], delta)


def test_budgets_of_disjoint_cohorts_are_not_added() -> None:
    first, second = spent(50, 1e-5), spent(100, 1e-4)
    text = RUN.combined(first, second, same_patients=False)
    assert f"{max(first.eps, second.eps):.4g}" in text
    assert "delta = 0.0001" in text


def test_budgets_of_the_same_patients_compose() -> None:
    first, second = spent(50, 1e-5), spent(100, 1e-5)
    both = spent(150, 1e-5)  # the same mechanism, so that one ledger has all its steps
    assert both.eps > max(first.eps, second.eps)
    assert str(both) in RUN.combined(first, second, same_patients=True)


def test_localised_inputs_differ_and_the_mask_comes_last() -> None:
    torch.manual_seed(0)
    setting = dataclasses.replace(tiny(), size=12)
    images, masks = torch.randn(2, 1, 12, 12, 12), torch.zeros(2, 12, 12, 12, dtype=torch.int64)
    masks[0, 2:6, 3:9, 4:6] = 1
    whole, none = RUN.inputs(RUN.Variant("whole"), images, masks, setting)
    assert not none.any()
    expected = torch.nn.functional.interpolate(images, (8, 8, 8), mode="trilinear", align_corners=False)
    torch.testing.assert_close(whole, expected)
    cropped, none = RUN.inputs(RUN.Variant("crop", localised=True, mask_pooling=True), images, masks, setting)
    assert none.tolist() == [False, True]
    assert cropped.shape == (2, 2, 8, 8, 8)
    assert 0 < cropped[0, 1].mean() < 1
    assert cropped[1, 1].sum() == 0


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_configuration_runs() -> None:
    tiny = ["n_train=6", "n_val=12", "n_test=2", "size=8", "batch_size=3"]
    arguments = [
        f"--config={RECIPE / 'config.yaml'}",
        "--trainer.fast_dev_run=true",
        "--trainer.enable_progress_bar=false",
    ]
    run = command_line([*arguments, *(f"--data.init_args.{setting}" for setting in tiny)], run=False)
    run.trainer.fit(run.model, run.datamodule)
    assert run.trainer.strategy.settings().dataset_size == 6


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_configuration_freezes_the_encoder_at_first_if_asked() -> None:
    """The command of the README."""
    tiny = ["n_train=6", "n_val=12", "n_test=2", "size=8", "batch_size=3"]
    words = [f"--config={RECIPE / 'config.yaml'}", *(f"--data.init_args.{setting}" for setting in tiny)]
    words += ["--trainer.max_steps=4", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.callbacks+=lightning.pytorch.callbacks.BackboneFinetuning"]
    words += ["--trainer.callbacks.unfreeze_backbone_at_epoch=1"]
    words += ["--trainer.callbacks.lambda_func=lightning_dp.tasks.optimisation.unchanged"]
    run = command_line(words, run=False)
    before = [p.detach().clone() for p in run.model.backbone.parameters()]
    run.trainer.fit(run.model, run.datamodule)
    assert [group["lr"] for group in run.trainer.optimizers[0].param_groups] == pytest.approx([0.3, 0.03])
    assert all(not torch.equal(p, old) for p, old in zip(run.model.backbone.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_configuration_for_a_gpu_trains_on_a_folder_made_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    task(tmp_path / "Task07", 5)
    tiny = [f"root={tmp_path / 'Task07'}", "size=16", "n_val=1", "n_test=1", "batch_size=2", "num_workers=0"]
    words = [f"--config={RECIPE / 'gpu.yaml'}", *(f"--data.init_args.{setting}" for setting in tiny)]
    words += ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
    small = ["network.init_args.filters=4", "network.init_args.depth=2"]
    words += [f"--model.init_args.{setting}" for setting in small]
    run = command_line([*words, "--trainer.strategy.init_args.delta=1e-2"], run=False)
    run.trainer.fit(run.model, run.datamodule)
    assert run.datamodule.num_classes == 3
    assert run.trainer.strategy.settings().dataset_size == 3  # patients

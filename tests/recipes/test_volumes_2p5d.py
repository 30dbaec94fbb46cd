"""The recipe on volumes, on made-up brains: it trains, compares, draws, and its GPU configuration builds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lightning_dp.cli
from lightning_dp.errors import PrivacyWarning
from tests.data.brains import write_brains
from tests.data.test_medmnist import write

pytest.importorskip("nibabel")
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "volumes_2p5d"
SMALL = [f"--data.init_args.{name}" for name in ("n_train=16", "n_val=0", "n_test=8", "batch_size=4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two brains, and the cache of what is made of them, for all tests."""
    return write_brains(tmp_path_factory.mktemp("brains"))


@pytest.fixture
def brains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    return f"--data.init_args.root={folder}"


@pytest.mark.parametrize(
    "network",
    ["attention", "lstm", "transformer", "acs"],
)
def test_configuration_trains(network: str, brains: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare

    words = [
        "fit",
        f"--config={RECIPE / 'config.yaml'}",
        "--trainer.fast_dev_run=2",
        "--trainer.enable_progress_bar=false",
    ]
    lightning_dp.cli.main([*words, *compare.settings(network), *SMALL, brains])


def test_comparison_runs_and_draws(
    brains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare

    figure = tmp_path / "slices.png"
    words = ["--seeds", "0", "--networks", "attention", "conv3d", "--figure", str(figure), "--trainer.max_steps=2"]
    results = compare.main([*words, *SMALL, brains])
    assert figure.stat().st_size > 1000
    (run,) = results["attention"]
    assert 7 < run["eps"] <= 8
    assert [n for _, n in run["counts"].values()][:2] == [4, 4]
    assert sum(run["counts"][f"attention in {axis}"][1] for axis in "zxy") == 4
    assert set(results["conv3d"][0]["metrics"]) == {"accuracy", "auroc", "mcc"}
    assert "planted slice in the first 3, attention of all" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*nonprivate.*")
def test_configuration_for_a_gpu_trains_on_a_folder_made_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three samples in the real set's form, as a new user would try it; on a CPU, with a small network of timm's."""
    pytest.importorskip("timm")
    write(tmp_path, "organmnist3d")
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    small = ["--model.init_args.network.init_args.backbone=test_resnet", "--data.init_args.batch_size=2"]
    small += ["--model.init_args.network.init_args.slice_size=[32,32]"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false"]
    with pytest.warns(PrivacyWarning, match="published are"):
        lightning_dp.cli.main(
            ["fit", f"--config={RECIPE / 'gpu.yaml'}", f"--data.init_args.root={tmp_path}", *small, *quiet]
        )


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.filterwarnings("ignore:.*nonprivate.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_slices_network_is_frozen_at_first_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the README on three samples: one epoch of the attention alone, then all at one learning rate."""
    pytest.importorskip("timm")
    write(tmp_path, "organmnist3d")
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    words = [f"--config={RECIPE / 'gpu.yaml'}", f"--data.init_args.root={tmp_path}", "--data.init_args.batch_size=2"]
    words += [
        "--model.init_args.network.init_args.backbone=test_resnet",
        "--model.init_args.network.init_args.slice_size=[32,32]",
    ]
    words += ["--trainer.callbacks+=lightning.pytorch.callbacks.BackboneFinetuning"]
    words += ["--trainer.callbacks.unfreeze_backbone_at_epoch=1", "--trainer.callbacks.backbone_initial_ratio_lr=1.0"]
    words += ["--trainer.callbacks.lambda_func=lightning_dp.tasks.optimisation.unchanged"]
    words += [
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--trainer.limit_val_batches=0",
        "--trainer.logger=false",
    ]
    words += ["--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    session = lightning_dp.cli.command_line(words, run=False)
    task, frozen = session.model, []
    task.on_before_optimizer_step = lambda optimizer: frozen.append(  # type: ignore[method-assign]
        all(p.grad is None for p in task.backbone.parameters())
    )
    session.trainer.fit(task, session.datamodule)
    half = len(frozen) // 2
    assert frozen == [True] * half + [False] * half
    (group, added) = session.trainer.optimizers[0].param_groups
    assert added["lr"] == pytest.approx(group["lr"])
    assert session.trainer.strategy.ledger.steps == len(frozen) >= 2


def test_configuration_for_a_gpu_builds_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    words = [f"--config={RECIPE / 'gpu.yaml'}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    session = lightning_dp.cli.command_line([*words, "--trainer.enable_checkpointing=false"], run=False)
    assert session.model.network.features == 512
    assert session.model.optimisation.optimizer == "nadam"
    assert session.datamodule.num_classes == 11

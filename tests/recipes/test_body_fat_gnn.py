"""The recipe runs from its configurations on a few ellipsoids, on three real meshes, and its comparison prints its table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lightning_dp.cli
from tests.data.bodies.test_files import folder

pytest.importorskip("torch_geometric")

RECIPE = Path(__file__).parents[2] / "recipes" / "body_fat_gnn"
SMALL = [
    "--data.init_args.bodies=ellipsoid",
    "--data.init_args.level=10",
    "--data.init_args.n_train=60",
    "--data.init_args.n_val=10",
    "--data.init_args.n_test=20",
    "--data.init_args.batch_size=20",
]
SHORT = ["--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]

pytestmark = pytest.mark.filterwarnings("ignore:batch size:lightning_dp.errors.PrivacyWarning")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "gpu.yaml", "silhouette.yaml"])
def test_configuration_trains(name: str) -> None:
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / name), *SMALL, *SHORT, "--trainer.devices=1"])


def test_three_meshes_of_your_own_are_enough(tmp_path: Path) -> None:
    own = [f"--data.init_args.root={folder(tmp_path)}", "--data.init_args.level=100", "--data.init_args.batch_size=2"]
    features = ["--data.init_args.features=[position]", "--model.init_args.network.init_args.in_features=3"]
    parts = ["--data.init_args.n_val=0", "--data.init_args.n_test=1"]
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "config.yaml"), *own, *features, *parts, *SHORT])
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "silhouette.yaml"), *own, *parts, *SHORT])


def test_comparison_prints_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare

    words = ["--seeds", "0", *SMALL, *SHORT[1:], "--trainer.max_epochs=1", "--networks", "MeshGNN", "SilhouetteCNN"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    compare.main()
    out = capsys.readouterr().out
    assert "linear on BMI, waist |" in out
    for row in ("MeshGNN", "MeshGNN, private", "SilhouetteCNN", "SilhouetteCNN, private"):
        assert f"| {row} |" in out
    assert out.count("\n|") >= 8


def test_the_mean_has_r2_zero_in_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare
    import numpy as np

    target = np.random.default_rng(0).normal(size=(20, 2))
    guess = target.mean(0) + 1e-9 * target
    assert compare.scores(guess, target)[:2] == pytest.approx([0, 0], abs=1e-6)

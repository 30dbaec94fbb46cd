"""The configurations and the script of `recipes/chest_xray_fairness`, on made-up masks and tables."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_dp.cli
from lightning_dp.data.chest_xray import module as module_file
from lightning_dp.metrics import Groups
from lightning_dp.metrics.functional import Outcomes
from tests.data.chest_xray.standins import masks, table

FOLDER = Path(__file__).parents[2] / "recipes" / "chest_xray_fairness"
QUIET = ["--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module_file, "read_nih_table", table)
    monkeypatch.setattr(module_file, "read_lung_masks", masks)
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])  # and not pytest's arguments
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.filterwarnings("ignore:batch size:lightning_dp.errors.PrivacyWarning")
def test_the_configuration_trains() -> None:
    few = ["--data.init_args.n_train=60", "--data.init_args.n_test=40", "--trainer.fast_dev_run=2"]
    lightning_dp.cli.main(["fit", "--config", str(FOLDER / "config.yaml"), *few, *QUIET])


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. will be overridden:UserWarning")
@pytest.mark.filterwarnings("ignore:FairnessMonitor, val:UserWarning")  # one patient has few groups
def test_the_gpu_configuration_trains_three_hand_made_patients(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "chest_xrays"
    root.mkdir()
    for name in "abcdefghij":
        image.fromarray(np.full((40, 40), 100, np.uint8)).save(root / f"{name}.png")
    rows = [f"{name}.png,p{n},F,40,0,1,0,0" for n, name in enumerate("abcdefghij")]
    header = "image,patient,sex,age,Cardiomegaly,Effusion,Infiltration,Pneumonia"
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    small = [f"--data.init_args.root={root}", "--data.init_args.image_size=32", "--data.init_args.num_workers=0"]
    small += ["--data.init_args.batch_size=4", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1"]
    small += ["--trainer.strategy.init_args.delta=0.01"]
    lightning_dp.cli.main(["fit", "--config", str(FOLDER / "gpu.yaml"), *small, *QUIET])


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_script_measures_both_variants(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import chest_xray_fairness

    runs = chest_xray_fairness.main(
        (math.inf, 8.0), (0,), steps=2, n_train=200, n_test=60, figures=tmp_path / "figures"
    )
    assert [(one.variant, one.eps) for one in runs] == [
        ("planted", math.inf), ("planted", 8.0), ("control", math.inf), ("control", 8.0)
    ]  # fmt: skip
    assert 7 < runs[1].spent <= 8
    assert runs[0].known < -0.02
    assert runs[2].known == pytest.approx(0.0, abs=1e-3)
    printed = capsys.readouterr().out
    assert "p of no loss" in printed
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_the_expected_gap_is_that_of_a_simulated_detector() -> None:
    """A detector of known sensitivity, and females of whose findings a share is invisible to it."""
    import torch
    from chest_xray_fairness import GROUPS, VARIANTS, expected_parity

    from lightning_dp.metrics.functional import fairness

    faint = VARIANTS["planted"]
    assert faint is not None
    rng, n = np.random.default_rng(0), 40_000
    labels, female = rng.random((n, 3)) < (0.1, 0.3, 0.5), rng.random(n) < 0.5
    invisible = female[:, None] & (rng.random((n, 3)) < faint.share)
    seen = labels & ~invisible
    predicted = rng.random((n, 3)) < np.where(seen, 0.8, 0.1)
    levels = torch.tensor(np.stack([~female, rng.integers(0, 5, n)], 1).astype(int))
    found = fairness(
        torch.tensor(predicted.astype(int)), torch.tensor(labels.astype(int)), levels, GROUPS,
        Outcomes.of("multilabel", 3), n_boot=10,
    )  # fmt: skip
    measured = found.by("sex").row("female").accuracy_parity_difference.value
    error = math.sqrt(2 * 0.25 / (3 * n / 2))
    assert abs(measured - expected_parity(found, faint)) < 4 * error
    assert isinstance(GROUPS, Groups)
    assert abs(expected_parity(found, None) - measured) > 10 * error


def test_the_readmes_settings_are_the_scripts() -> None:
    import chest_xray_fairness

    assert sum(p.numel() for p in chest_xray_fairness.network().parameters()) == 9_859

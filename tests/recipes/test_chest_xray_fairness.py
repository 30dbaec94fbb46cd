"""The configurations and the script of `recipes/chest_xray_fairness`, on made-up masks and tables."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_dp.cli
from lightning_dp.data.chest_xray import module as module_file
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
        (math.inf, 8.0), (0,), steps=2, n_train=200, n_test=60, figures=tmp_path / "figures", sets=7
    )
    assert [(one.variant, one.eps) for one in runs] == [
        ("planted", math.inf), ("planted", 8.0), ("control", math.inf), ("control", 8.0)
    ]  # fmt: skip
    assert 7 < runs[1].spent <= 8
    assert runs[0].ideal_gap < -0.02
    assert runs[2].ideal_gap == pytest.approx(0.0, abs=1e-3)
    assert all(one.truth.sets == 7 for one in runs)
    assert runs[0].truth.gap != runs[0].truth.without
    assert runs[2].truth.gap == runs[2].truth.without
    printed = capsys.readouterr().out
    assert "p of no loss" in printed
    assert "of 7 further ones" in printed
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_the_true_gap_and_how_often_intervals_hold_it_of_a_detector_of_known_mistakes() -> None:
    """Pictures are logits already. Females' findings are missed with chance 0.5 where planted, else everybody's with 0.1."""
    import torch
    from true_gap import Population

    rng, n, sets = np.random.default_rng(0), 400, 80
    labels, male = rng.random((n * sets, 3)) < (0.1, 0.3, 0.5), rng.random(n * sets) < 0.5
    levels = np.stack([male, rng.integers(0, 5, n * sets)], 1).astype(np.int64)

    def chunk(missed: np.ndarray) -> dict[str, np.ndarray]:
        seen = labels & (rng.random(labels.shape) >= missed)
        return {"inputs": np.where(seen, 4.0, -4.0), "labels": labels.astype(np.float32), "levels": levels}

    chunks = chunk(np.where(male, 0.1, 0.5)[:, None]), chunk(np.full((n * sets, 1), 0.1))
    population = Population()
    half = n * sets // 2
    for part in (slice(0, half), slice(half, None)):  # chunk by chunk
        population.add(torch.nn.Identity(), [{name: a[part] for name, a in one.items()} for one in chunks], n)
    truth = population.truth()
    assert truth.gap == pytest.approx(-0.4 * 0.3, abs=4 * truth.error)
    assert truth.without == pytest.approx(0.0, abs=4 * truth.error)
    assert truth.error == pytest.approx(np.sqrt(4 * right_variance(chunks[0]) / (n * sets)), rel=0.1)
    assert truth.sets == sets
    assert abs(truth.held / sets - 0.95) < 4 * math.sqrt(0.95 * 0.05 / sets)


def right_variance(chunk: dict[str, np.ndarray]) -> float:
    return float(((chunk["inputs"] > 0) == (chunk["labels"] > 0)).mean(1).var())


def test_the_readmes_settings_are_the_scripts() -> None:
    import chest_xray_fairness

    assert sum(p.numel() for p in chest_xray_fairness.network().parameters()) == 9_859

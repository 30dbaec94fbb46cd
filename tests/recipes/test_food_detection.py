"""The food recipe: its configurations train, on made-up pictures and on a folder in the real form."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_dp.cli
from lightning_dp.data.food import make_scenes, write_food_labels
from lightning_dp.data.food.labels import LabelledImage
from tests.recipes.sprites import sprites

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

RECIPE = Path(__file__).parents[2] / "recipes" / "food_detection"
FEW = [f"--data.init_args.{name}" for name in ("n_train=24", "n_val=0", "n_test=12", "batch_size=8")]
QUIET = ["--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    monkeypatch.setattr(
        "lightning_dp.data.food.modules.food_sprites", lambda vendor, root: sprites(shifted=vendor == "twitter")
    )


def test_configuration_trains() -> None:
    lightning_dp.cli.main(["fit", f"--config={RECIPE / 'config.yaml'}", "--trainer.fast_dev_run=2", *FEW, *QUIET])


def test_gpu_configuration_trains_on_a_folder_in_the_real_form(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "root"
    folder.mkdir()
    scenes = make_scenes(sprites(), 12)
    entries = [
        LabelledImage(f"{i}.png", labels[labels >= 0], boxes[labels >= 0])
        for i, (boxes, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True))
    ]
    for entry, pixels in zip(entries, scenes.images, strict=True):
        image.fromarray(np.ascontiguousarray(pixels)).save(folder / entry.name)
    write_food_labels(folder / "files.txt", entries)
    arguments = [f"--data.init_args.{name}" for name in (f"root={folder}", "test_size=4", "batch_size=4", "size=64")]
    lightning_dp.cli.main(
        ["fit", f"--config={RECIPE / 'gpu.yaml'}", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1"]
        + ["--model.init_args.network.init_args.width=8", *arguments, *QUIET]
    )


def test_comparison_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare

    few = [*FEW, "--trainer.max_steps=2", "--trainer.strategy.init_args.physical_batch_size=8"]
    runs = compare.main(["--variants", "private", "--seeds", "0", *few])
    plain = compare.main(["--variants", "plain", "--seeds", "0", *FEW, "--trainer.max_steps=2"])
    (private,) = runs["private"]
    assert 0 < private["eps"] <= 8
    assert plain["plain"][0]["eps"] == float("inf")
    assert {f"{p}{m}" for p in ("", "shifted/") for m in ("map_50", "count_area/night")} <= set(private)
    assert "shifted/map_50/day" in capsys.readouterr().out

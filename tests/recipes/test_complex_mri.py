"""The recipe trains on a few scans of made-up anatomy, from each configuration, and so do the variants of its README."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import lightning_dp.cli
from lightning_dp.data import kspace

RECIPE = Path(__file__).parents[2] / "recipes" / "complex_mri"
NETWORK = "--model.init_args.network.init_args"
SMALL = [
    "--data.init_args.n_subjects=6",
    "--data.init_args.n_val=2",
    "--data.init_args.n_test=2",
    "--data.init_args.size=16",
    "--data.init_args.batch_size=8",
    "--trainer.fast_dev_run=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
]

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")


@pytest.fixture(autouse=True)
def made_up_anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.random.default_rng(0).random((3, 5, 12, 10)).astype(np.float32) / 3
    monkeypatch.setattr(kspace, "tissue_maps", lambda: maps)
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


PLAIN = ["--trainer.strategy=auto", "--trainer.callbacks=[]"]
SUBJECTS = [
    "--trainer.strategy.init_args.unit=unit_id",
    "--trainer.strategy.init_args.max_rows_per_unit=8",
    "--data.init_args.batch_size=3",
]


@pytest.mark.parametrize("variant", [[], PLAIN, SUBJECTS], ids=["scans", "no_privacy", "subjects"])
def test_contrast_histograms_train(variant: list[str]) -> None:
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "config.yaml"), *SMALL, *variant])


@pytest.mark.parametrize(
    "variant",
    [
        [],
        [f"{NETWORK}.numbers=real", f"{NETWORK}.widths=[16,23]"],
        [f"{NETWORK}.front=image"],
        [f"{NETWORK}.front=kspace"],
    ],
    ids=["complex", "real", "image", "kspace"],
)
def test_convolutional_networks_train(variant: list[str]) -> None:
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "conv.yaml"), *SMALL, f"{NETWORK}.size=16", *variant])


def test_the_configuration_for_a_gpu_trains() -> None:
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "gpu.yaml"), *SMALL, f"{NETWORK}.size=16"])

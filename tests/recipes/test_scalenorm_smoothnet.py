"""The recipe on a few made-up pictures: both configurations, and the comparison."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lightning_dp.cli
from tests.data.test_pictures import emoji, write_cifar

RECIPE = Path(__file__).parents[2] / "recipes" / "scalenorm_smoothnet"
pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")  # few samples, for speed


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lightning_dp.data.emoji_categories.read_emoji", lambda vendors, root: emoji(tuple(vendors), 20)
    )
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])  # and not pytest's arguments


def test_configuration_trains() -> None:
    short = ["--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"]
    lightning_dp.cli.main(["fit", "--config", str(RECIPE / "config.yaml"), *short])


def test_gpu_configuration_parses_and_trains_with_a_small_network(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10, "pickle")
    small = ["--model.init_args.network.init_args.depth=10", "--model.init_args.network.init_args.width=1"]
    data = [f"--data.init_args.root={tmp_path}", "--data.init_args.num_workers=0", "--data.init_args.batch_size=4"]
    run = lightning_dp.cli.command_line(
        [f"--config={RECIPE / 'gpu.yaml'}", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1", *small, *data],
        run=False,
    )
    run.trainer.fit(run.model, run.datamodule)
    assert run.trainer.strategy.privacy_spent().eps <= 8


def test_comparison_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    import compare

    short = ["--trainer.max_steps=2", "--data.init_args.batch_size=8"]
    assert set(compare.NETWORKS) == set(compare.LEARNING_RATES)
    best = compare.tune(["cnn"], (0.1, 1.0), 8.0, short)
    assert best["cnn"] in (0.1, 1.0)
    runs = compare.measure(["scalenorm", "smoothnet"], compare.LEARNING_RATES, [7.0, None], [0], short)
    assert len(runs) == 4
    shown = capsys.readouterr().out
    assert "eps 6.9" in shown or "eps 7.0" in shown
    assert "eps inf" in shown

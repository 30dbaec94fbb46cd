"""The `lightning-dp` command: its names, its help, and the hints it gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import Strategy

import lightning_dp.cli
import lightning_dp.strategies
from lightning_dp.cli import main
from lightning_dp.errors import PrivacyConfigError

ROOT = Path(__file__).resolve().parents[1]

# A module and data that the test owns; everything of ours is named by its short name.
BORING = [
    "--model=lightning.pytorch.demos.boring_classes.BoringModel",
    "--data=lightning.pytorch.demos.boring_classes.BoringDataModule",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])  # and not pytest's arguments


def strategy_config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(
        "trainer:\n  max_steps: 2\n  limit_val_batches: 0\n"
        "  strategy:\n    class_path: DPStrategy\n    init_args: {noise_multiplier: 1.0, delta: 1.0e-3}\n"
        "  callbacks:\n    - class_path: PrivacyAccountant\n"
    )
    return str(path)


def test_the_command_is_installed() -> None:
    commands = [point for point in entry_points(group="console_scripts") if point.name == "lightning-dp"]
    if not commands:
        pytest.skip("the package is not installed (make install)")
    assert commands[0].load() is main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip().endswith(lightning_dp.__version__)


def test_missing_parser_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_dp.cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'lightning-dp\[cli\]'"):
        main(["fit"])


@pytest.mark.parametrize("spelling", ["DPStrategy", "lightning_dp.strategies.DPStrategy"])
def test_a_bare_class_name_gets_a_hint(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *BORING, "--trainer.strategy", spelling])
    assert stop.value.code == 2
    assert "--trainer.strategy DPStrategy --trainer.strategy.eps 8" in capsys.readouterr().err


def test_a_config_with_short_names_trains_privately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    after_fit = lambda cli: started.append(cli.trainer)  # noqa: E731
    monkeypatch.setattr(lightning_dp.cli.PrivateCLI, "after_fit", after_fit, raising=False)
    main(["fit", *BORING, "--config", strategy_config(tmp_path)])
    (trainer,) = started
    assert type(trainer.strategy) is lightning_dp.strategies.DPStrategy
    assert trainer.strategy.ledger.steps == trainer.global_step == 2


@pytest.mark.parametrize(("unit", "units"), [("[" + "7, 8, 8, 9, " * 16 + "]", 3), ("patient", 0)])
def test_units_can_be_named_or_listed_in_a_config(
    unit: str, units: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(
        lightning_dp.cli.PrivateCLI, "after_fit", lambda cli: started.append(cli.trainer), raising=False
    )
    config = Path(strategy_config(tmp_path))
    config.write_text(config.read_text().replace("{noise_multiplier", f"{{unit: {unit}, noise_multiplier"))
    if not units:
        with pytest.raises(SystemExit, match="no attribute 'patient'"):
            main(["fit", *BORING, "--config", str(config)])
        return
    main(["fit", *BORING, "--config", str(config)])
    assert started[0].strategy.settings().dataset_size == units


REFUSED = ["fit", *BORING, "--trainer.strategy=DPStrategy", "--trainer.strategy.eps=8", "--trainer.max_epochs=1"]


def test_a_refusal_is_its_message_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DP_DEBUG", raising=False)
    with pytest.raises(SystemExit, match=r"^lightning-dp: .*gradient_clip_val.*max_grad_norm") as stop:
        main([*REFUSED, "--trainer.gradient_clip_val=1.0"])
    assert stop.value.code == str(stop.value)  # which python prints to stderr, and exits with 1
    monkeypatch.setenv("LIGHTNING_DP_DEBUG", "1")
    with pytest.raises(PrivacyConfigError, match="gradient_clip_val"):
        main([*REFUSED, "--trainer.gradient_clip_val=1.0"])


def test_a_refusal_in_the_shell_has_no_traceback() -> None:
    words = [sys.executable, "-m", "lightning_dp.cli", *REFUSED, "--trainer.gradient_clip_val=1.0"]
    environment = {key: value for key, value in os.environ.items() if key != "LIGHTNING_DP_DEBUG"}
    run = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.rstrip().splitlines()[-1].startswith("lightning-dp: ")


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("not a refusal")

    monkeypatch.setattr("lightning_dp.cli.PrivateCLI", broken)
    with pytest.raises(RuntimeError, match="not a refusal"):
        main(REFUSED)


def test_a_second_run_into_the_same_folder_is_no_error(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    arguments = ["fit", *BORING, "--config", strategy_config(tmp_path), "--trainer.default_root_dir", folder]
    main(arguments)
    main(arguments)
    assert (tmp_path / "run" / "config.yaml").is_file()


STRATEGIES = [
    name
    for name in lightning_dp.strategies.__all__
    if isinstance(kind := getattr(lightning_dp.strategies, name), type) and issubclass(kind, Strategy)
]


@pytest.mark.parametrize("name", STRATEGIES)
def test_help_of_every_strategy_can_be_built(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--trainer.strategy.help={name}"])
    assert stop.value.code == 0
    assert "--trainer.strategy" in capsys.readouterr().out


def test_inspect_prints_the_table_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", *BORING, "--config", strategy_config(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"layer +Linear +66 +all +rule +direct", printed)
    assert "Nothing found" in printed


def test_inspect_takes_the_configuration_that_fit_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    main(["fit", *BORING, "--config", strategy_config(tmp_path), "--trainer.default_root_dir", str(folder)])
    main(["inspect", "--config", str(folder / "config.yaml")])
    assert "Linear" in capsys.readouterr().out


def test_inspect_fails_where_fit_would_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "--model=tests.test_cli.WithBatchNorm", *BORING[1:]])
    assert stop.value.code == 1
    assert "replace_batch_norm" in capsys.readouterr().out


class WithBatchNorm(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(32, 2), torch.nn.BatchNorm1d(2))


def test_a_run_without_a_logger_leaves_the_given_configuration_alone(tmp_path: Path) -> None:
    config = Path("config.yaml")  # the name that Lightning writes to, in the folder of the run
    config.write_text(Path(strategy_config(tmp_path)).read_text())
    before = config.read_text()
    main(["fit", "--config=config.yaml", *BORING])
    assert config.read_text() == before

"""Every recipe runs from its configuration, from its command and in its notebook."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import lightning_dp.cli
from lightning_dp.data.fashion_mnist import find_fashion_mnist

ROOT = Path(__file__).parents[1]
# A recipe with data to make or to stand in for has a test of its own, tests/recipes/test_<name>.py.
OWN = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "recipes").glob("test_*.py")}
CONFIGS = [path for path in sorted((ROOT / "recipes").glob("*/*.yaml")) if path.parent.name not in OWN]
SHORT = ["--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp"])  # and not pytest's arguments
    lightning_dp.cli.main(arguments)


@pytest.mark.filterwarnings("ignore:batch size:lightning_dp.errors.PrivacyWarning")  # a hundred images, for speed
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configuration_trains(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "FashionMNIST" in config.read_text():
        if find_fashion_mnist() is None:
            pytest.skip("Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
        # A hundred images give the same code path as sixty thousand.
        monkeypatch.setattr("lightning_dp.data.fashion_mnist.read_fashion_mnist", few_images)
    run(["fit", "--config", str(config), *SHORT], monkeypatch)


def few_images(folder: Path, part: str) -> tuple[object, object]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.rand(100, 1, 28, 28, generator=generator), torch.arange(100) % 10


@pytest.mark.parametrize("readme", sorted((ROOT / "recipes").glob("*/README.md")), ids=lambda path: path.parent.name)
def test_readme_names_commands_that_exist(readme: Path) -> None:
    text = readme.read_text()
    configs = re.findall(r"lightning-dp \w+ --config (\S+)", text)
    scripts = re.findall(r"python (\S+\.py)", text)
    assert configs or scripts
    for path in configs + scripts:
        assert (ROOT / path).is_file(), path


def test_every_recipe_has_a_readme() -> None:
    folders = {path.parent for path in CONFIGS}
    assert len(folders) >= 2
    assert all((folder / "README.md").is_file() for folder in folders)


def test_quickstart_learns_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "quickstart"))
    import quickstart

    accuracy, strategy = quickstart.main()
    assert 2.9 < strategy.privacy_spent().eps <= 3.0
    # Over ten runs it gave 93 % to 95 %; chance is 10 %. A run below 85 % would be far outside that spread.
    assert accuracy > 0.85


@pytest.mark.slow
def test_notebook_runs_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(ROOT / "recipes" / "quickstart" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "test accuracy" in text
    assert re.search(r"eps = 2\.9\d+ at delta", text)


def test_fairness_over_eps_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_dp.data.actg175 import find_actg175

    try:
        find_actg175()
    except ModuleNotFoundError:
        pytest.skip("lifelines is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "fair_tabular"))
    import fair_tabular

    runs = fair_tabular.main(eps_grid=(8.0, float("inf")), seeds=(0,), epochs=1)
    assert 7 < runs[0].spent <= 8
    assert runs[1].spent == float("inf")
    assert all(run.fairness.overall.n == run.calibration.overall.n == 639 for run in runs)
    assert sum(row.n for row in runs[0].fairness.by("sex").rows) == 639
    assert "Pearson's r" in capsys.readouterr().out


def test_ensembles_answer_less_and_better(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "multiplicity"))
    import multiplicity

    rows = multiplicity.main(eps_grid=(3.0,), seeds=(0,), count=3, sizes=(1, 3), epochs=3)
    one, three = rows
    assert one.coverage == 1
    assert three.coverage < 1
    assert three.selective_accuracy > one.selective_accuracy
    assert one.ensemble_eps < three.ensemble_eps < 3 * one.ensemble_eps
    assert "3  " in capsys.readouterr().out

"""`lightning-dp recipes`: what it lists, what it copies, what it refuses, and that a wheel brings the recipes along."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import lightning_dp.cli
import lightning_dp.recipes
from lightning_dp.recipes import copy_recipe, find_recipes

ROOT = Path(__file__).parents[1]
FOLDERS = {path.parent.name for path in (ROOT / "recipes").glob("*/README.md")}


@pytest.fixture(autouse=True)
def _without_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_dp.cli, "find_spec", lambda name: None)  # the core install


def command(*words: str) -> None:
    lightning_dp.cli.main(["recipes", *words])


def test_every_folder_is_listed_with_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    command("ls")
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == FOLDERS
    assert any(line.startswith("quickstart ") and line.endswith("  Quickstart: handwritten digits") for line in lines)


def test_words_are_read_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-dp", "recipes", "ls"])
    lightning_dp.cli.main()
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_copy_is_whole_and_its_command_names_a_file_that_exists(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine"
    command("cp", name, str(target))
    source = ROOT / "recipes" / name
    expected = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == expected
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(("Run it with: lightning-dp", "Run it with: python"))
    assert Path(last.split()[-1]).is_file()
    assert target in Path(last.split()[-1]).parents


def test_the_name_is_the_default_destination() -> None:
    command("cp", "quickstart")
    assert Path("quickstart", "README.md").is_file()


@pytest.mark.parametrize(
    "name, message", [("quickstrat", "did you mean quickstart"), ("xyz", "there are .*quickstart"), ("", "there are")]
)
def test_an_unknown_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command("cp", name)
    assert not list(Path().iterdir())


def test_what_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "README.md").write_text("changed")
    (target / "notes.txt").write_text("my own")
    with pytest.raises(SystemExit, match="exists: .*--force"):
        command("cp", "quickstart", str(target))
    assert (target / "README.md").read_text() == "changed"
    command("cp", "quickstart", str(target), "--force")
    assert (target / "README.md").read_bytes() == (ROOT / "recipes" / "quickstart" / "README.md").read_bytes()
    assert (target / "notes.txt").read_text() == "my own"


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("x")
    with pytest.raises(SystemExit, match="choose another name"):
        command("cp", "quickstart", str(taken), "--force")
    assert taken.read_text() == "x"


@pytest.mark.parametrize("inside", ["", "copy"])
def test_a_recipe_is_not_copied_into_itself(inside: str) -> None:
    folder = find_recipes()["quickstart"].folder
    with pytest.raises(ValueError, match="own folder"):
        copy_recipe("quickstart", folder / inside, force=True)
    assert not (folder / "copy").exists()


def test_missing_recipes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_dp.recipes, "PACKAGE", tmp_path / "lightning_dp")
    with pytest.raises(SystemExit, match="not installed"):
        command("ls")


@pytest.mark.parametrize("words", [[], ["rm"], ["cp"]])
def test_other_words_show_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*words)
    assert stop.value.code == 2
    assert "usage: lightning-dp recipes" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed")
def test_a_wheel_brings_the_recipes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.setattr(lightning_dp.recipes, "PACKAGE", tmp_path / "site" / "lightning_dp")
    found = find_recipes()
    assert set(found) == FOLDERS
    assert found["quickstart"].folder == tmp_path / "site" / "lightning_dp" / "_recipes" / "quickstart"
    _, target = copy_recipe("quickstart", tmp_path / "mine")
    assert (target / "config.yaml").is_file()

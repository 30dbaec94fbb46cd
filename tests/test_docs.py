"""The README and the documentation: what they show must exist, parse and, if it is a whole program, run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    text = path.read_text() if path.is_file() else ""
    return [block for language, block in BLOCK.findall(text) if language in languages]


PYTHON = [(path, text) for path in PAGES for text in blocks(path, "python")]
SHELL = [
    (path, line.split("#")[0].strip())
    for path in PAGES
    for text in blocks(path, "console", "bash", "sh")
    for line in text.splitlines()
    if line.split("#")[0].strip()
]


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value).strip().split("\n")[0][:50]


@pytest.mark.parametrize("path, text", PYTHON, ids=name_of)
def test_shown_python_parses_and_its_imports_exist(path: Path, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", ["docs/index.md", "README.md"])
def test_first_program_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / page
    if not blocks(path, "python"):
        pytest.skip(f"{page} shows no program")
    program = tmp_path / "shown.py"
    program.write_text(next(text for text in blocks(path, "python") if "import " in text))
    names = runpy.run_path(str(program))
    assert names["trainer"].strategy.ledger.steps > 0  # it trained, and it was charged


@pytest.mark.parametrize("path, line", SHELL, ids=name_of)
def test_shown_command_exists(path: Path, line: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"pip install[^\n]*\[([\w,-]+)\]", line):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", line):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no make target {target}"
    for command in re.findall(r"^lightning-dp (\w+)", line):
        assert command in {"fit", "validate", "test", "predict", "inspect", "recipes"}
    for config in re.findall(r"--config (recipes/[\w/.-]+)", line):
        assert (ROOT / config).is_file()


@pytest.mark.parametrize("target", ["quickstart", "mutants"])
def test_make_target_runs_a_script_that_exists(target: str) -> None:
    plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (script,) = re.findall(r"\b((?:recipes|tests)/[\w/]+\.py)", plan)
    assert (ROOT / script).is_file()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    pages = [str(path.relative_to(ROOT / "docs")) for path in sorted(ROOT.glob("docs/**/*.md"))]
    assert [page for page in pages if f": {page}" not in navigation] == []


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_refusal_is_documented() -> None:
    from lightning_dp.strategies import REFUSALS

    page = (ROOT / "docs" / "refusals.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(row.name for row in REFUSALS)


def test_the_readmes_callbacks_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from lightning_dp.report import build_document

    (shown,) = [text for text in blocks(ROOT / "README.md", "python") if text.startswith("callbacks = [")]
    document = build_document(model={"name": "Net"}, settings=None, spent=None)
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "report.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    names = dict(vars(importlib.import_module("lightning_dp")))
    exec(shown, names)
    assert len(names["callbacks"]) == 5

"""The direction of dependencies, read from the source: who may import what, and what no file may contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_dp"
FILES = sorted(PACKAGE.rglob("*.py"))

# For each part of the package, the parts it may import besides itself and `errors`. A part that is not listed
# (a new sub-package, say) fails the test until somebody decides where it stands.
CORE = {"accounting", "gradients", "sampling"}
PLUGINS = {"metrics", "models", "data", "tasks", "posterior", "strategies", "callbacks", "report"}
MAY_IMPORT = {
    "errors": set(),
    "optional": set(),
    "_compat": set(),
    "accounting": set(),
    "sampling": {"accounting"},
    "gradients": {"accounting"},
    "metrics": {"accounting"},
    "models": {"gradients"},
    "posterior": {"accounting"},
    "data": {"sampling", "models", "_compat"},
    "tasks": {"metrics", "models", "data"},
    "strategies": {"accounting", "gradients", "sampling", "posterior", "_compat"},
    "report": {"accounting"},
    "callbacks": {"accounting", "metrics", "posterior", "report", "_compat"},
    "inspection": {"gradients", "strategies"},
    "recipes": set(),
    "cli": CORE | PLUGINS | {"_compat", "inspection", "recipes"},
    "__init__": CORE | PLUGINS | {"inspection"},
}

# Other people's packages a part must do without, wherever in the file the import stands.
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}
NEVER = {
    "accounting": LIGHTNING | {"torch", "torchmetrics"},
    "sampling": LIGHTNING,
    "gradients": LIGHTNING,
    "metrics": LIGHTNING,
    "models": LIGHTNING,
    "posterior": LIGHTNING,
    "report": LIGHTNING | {"torch", "torchmetrics"},
}
# Packages that import torch, so that accounting may only reach for them inside a function.
ONLY_LAZILY = {"accounting": {"opacus"}}
# Packages of the extras: a core install has none of them, so no file may need one in order to be imported.
EXTRAS = {"sklearn", "torchvision", "timm", "torch_geometric", "matplotlib", "jsonargparse", "tensorboard"} | {
    "anny",
    "lifelines",
    "nibabel",
    "nilearn",
    "PIL",
    "torchxrayvision",
}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute, `name` is None for `import module`."""

    module: str
    name: str | None
    line: int
    lazy: bool  # inside a function
    guarded: bool  # inside a function, a `try` or an `if`

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def parts(self) -> list[str]:
        return self.module.split(".") + ([self.name] if self.name else [])


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import of a parsed file that lies in `package` (dotted)."""

    def inside(*kinds: type[ast.AST]) -> set[int]:
        return {id(child) for node in ast.walk(tree) if isinstance(node, kinds) for child in ast.walk(node)}

    functions = inside(ast.FunctionDef, ast.AsyncFunctionDef)
    guards = functions | inside(ast.Try, ast.If)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, id(node) in functions, id(node) in guards)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, id(node) in functions, id(node) in guards)


def part_of(path: Path) -> str:
    """The part of the package a file belongs to: its sub-package, or its own name at the top level."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def faults(source: str, part: str, package: str) -> list[str]:
    """All breaches of the rules above in one file's text."""
    found = []
    tree = ast.parse(source)
    for one in imports_of(tree, package):
        where = f"line {one.line}: {'.'.join(one.parts)}"
        if one.top == "lightning_dp":
            target = one.parts[1] if len(one.parts) > 1 else None
            if target is None or target not in MAY_IMPORT:
                if part != "cli":
                    found.append(f"{where}: import from the sub-package, not from the package's front door")
            elif target not in MAY_IMPORT[part] | {part, "errors", "optional"}:
                found.append(f"{where}: {part} must not depend on {target}")
        if one.top in NEVER.get(part, ()):
            found.append(f"{where}: {part} must work without {one.top}")
        if one.top in ONLY_LAZILY.get(part, ()) and not one.lazy:
            found.append(f"{where}: import {one.top} inside the function that needs it")
        if one.top in EXTRAS and not one.guarded:
            found.append(f"{where}: {one.top} belongs to an extra; import it where it is needed")
        if one.top in {"pytorch_lightning", "lightning_fabric"}:
            found.append(f"{where}: the package is called `lightning`; a second copy has other classes")
        private = any(p.startswith("_") and not p.startswith("__") for p in one.parts)
        if one.top in LIGHTNING and private and part != "_compat":
            found.append(f"{where}: private names of Lightning are imported in _compat.py alone")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"line {node.lineno}: print; use rank_zero_info")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_its_place(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"decide in MAY_IMPORT where {part!r} stands"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert faults(path.read_text(), part, package) == []


@pytest.mark.parametrize(
    "part, source",
    [
        ("accounting", "import torch"),
        ("accounting", "def f():\n    import torch"),
        ("accounting", "from opacus.accountants.analysis import rdp"),
        ("accounting", "from ..gradients import engine"),
        ("gradients", "from lightning.pytorch import Trainer"),
        ("gradients", "from lightning_dp.strategies import DPStrategy"),
        ("gradients", "from lightning_dp import DPStrategy"),
        ("sampling", "import lightning"),
        ("data", "from sklearn.datasets import load_digits"),
        ("metrics", "from lightning_dp.callbacks import RiskReport"),
        ("models", "import lightning.pytorch as pl"),
        ("callbacks", "if TYPE_CHECKING:\n    from lightning_dp.strategies import DPStrategy"),
        ("callbacks", "from ..strategies.dp import DPStrategy"),
        ("strategies", "from lightning.pytorch.utilities.model_helpers import _private"),
        ("strategies", "from lightning.pytorch.loops._hidden import public"),
        ("strategies", "from pytorch_lightning import Trainer"),
        ("strategies", "def f():\n    print('eps')"),
    ],
)
def test_a_breach_is_found(part: str, source: str) -> None:
    assert faults(source, part, f"lightning_dp.{part}")


@pytest.mark.parametrize(
    "part, source",
    [
        ("accounting", "def f():\n    from opacus.accountants.analysis import rdp"),
        ("accounting", "from .events import GaussianEvent\nfrom ..errors import PrivacyConfigError"),
        ("gradients", "import torch\nfrom torch.nn.modules.module import _global_forward_hooks"),
        ("strategies", "from lightning.pytorch.strategies import DDPStrategy\nfrom .._compat import x"),
        ("models", "try:\n    import timm\nexcept ImportError:\n    timm = None"),
        ("_compat", "from lightning.fabric.utilities.rank_zero import _get_rank"),
        ("callbacks", "from __future__ import annotations\nfrom ..metrics import CalibrationError"),
    ],
)
def test_what_is_allowed_is_not_reported(part: str, source: str) -> None:
    assert faults(source, part, f"lightning_dp.{part}") == []


# --- text that belongs in no file -------------------------------------------------------------------------
# A folder of somebody's machine; `/usr/share` is where a Debian package puts its data, the same everywhere.
MACHINE_PATH = re.compile(r"(?<![\w./<>}-])/(?:home|root|Users|work|workspace|tmp|mnt|opt|srv)/[\w.-]+")
# Packages are installed by name alone; where they come from is the business of each machine.
PACKAGE_SOURCE = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host|pip install[^\n]*(?:https?://| git\+)")
# Code refers to a paper or to a licence, never to a server.
ADDRESS = re.compile(r"https?://(?!arxiv\.org/|doi\.org/|www\.apache\.org/)")

FOLDERS = ("lightning_dp/**/*", "recipes/**/*", "benchmarks/**/*", "docs/**/*")
SHIPPED = [
    path
    for pattern in (*FOLDERS, "*.md", "*.toml", "*.yml", "Makefile", ".ci/run")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".ipynb", ""}
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_names_no_machine_and_no_package_source(path: Path) -> None:
    text = path.read_text()
    assert MACHINE_PATH.findall(text) == []
    assert PACKAGE_SOURCE.findall(text) == []
    if path.is_relative_to(PACKAGE):
        assert ADDRESS.findall(text) == []


@pytest.mark.parametrize("text", ["/home/me/data", "open('/tmp/x')", "path: /srv/data"])
def test_a_machine_path_is_found(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["pip install --index-url x", "pip install -q git+https://x/y"])
def test_a_package_source_is_found(text: str) -> None:
    assert PACKAGE_SOURCE.search(text)


@pytest.mark.parametrize("text", ["recipes/work/x", "/usr/share/datasets/fashion-mnist", "a/tmp/b"])
def test_an_ordinary_path_is_not_reported(text: str) -> None:
    assert not MACHINE_PATH.search(text)

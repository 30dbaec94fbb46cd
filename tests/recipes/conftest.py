"""Recipes are folders of scripts, of which several have the same name: each test imports its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*/*.py")}


@pytest.fixture(autouse=True)
def own_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the scripts of other recipes."""
    for name in SCRIPTS:
        monkeypatch.delitem(sys.modules, name, raising=False)

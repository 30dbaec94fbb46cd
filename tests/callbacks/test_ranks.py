"""Monitors on two ranks say what they say on one: no sample of a ragged share is lost or counted twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.scripts.ranks import main

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LAUNCHED = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks holds, and one process alone."""
    clean = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / "scripts" / "ranks.py"), str(folder), "2"],
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(folder, 1)
    return [json.loads((folder / name).read_text()) for name in ("2-0.json", "2-1.json", "1-0.json")]


def same(one: Any, other: Any, path: str = "") -> None:
    """Equal, up to the rounding of a network's batches of another size."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{path}/{place}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5), path
    else:
        assert one == other, path


def test_two_ranks_say_what_one_says(ranks: list[dict[str, Any]]) -> None:
    first, second, alone = ranks
    assert len(alone) == 5
    for name in alone.keys() - {"report"}:  # its module was trained with noise
        same(first[name], alone[name], name)
        same(second[name], alone[name], name)
    sizes = [alone[name]["results"][0]["overall"]["n"] for name in ("ragged", "one batch more", "one sample")]
    assert sizes == [53, 17, 1]


def test_two_ranks_write_one_report_of_the_same_guarantee(ranks: list[dict[str, Any]], folder: Path) -> None:
    first, second, alone = (one["report"] for one in ranks)
    assert [one["writes"] for one in (first, second, alone)] == [True, False, True]
    assert first["rows"] == second["rows"] == alone["rows"]
    assert first["logged"] == second["logged"]
    both, single = (json.loads((folder / f"report-{n}" / "report.json").read_text()) for n in (2, 1))
    for part in ("private", "membership", "reconstruction", "guarantee"):
        assert both[part] == single[part], part
    assert both["utility"]["test/worst_group_accuracy"] == pytest.approx(first["logged"])
    assert sorted(path.name for path in (folder / "report-2").iterdir()) == [
        "model_card.md",
        "report.html",
        "report.json",
    ]

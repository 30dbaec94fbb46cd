"""Two ranks are one, with ragged shares and with none: one pair of processes for all metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.metrics.scripts.ranks import N, run

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks computed, and one process alone."""
    folder = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).parent / "scripts" / "ranks.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, str(folder), str(rank), "2"],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return [*found, json.loads(json.dumps(run(0, 1)))]


def same(one: Any, other: Any) -> None:
    """Equal, but for the rounding of float64 sums in another order."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
    else:
        assert one == other


def test_both_ranks_compute_what_one_process_does(ranks: list[dict[str, Any]]) -> None:
    first, second, alone = ranks
    compared = [key for key in alone if not key.endswith("/own")]
    assert len(compared) == 2 * 2 * (4 + 4 + 2) + 2 + 1
    for key in compared:
        assert first[key] == second[key], key
        same(first[key], alone[key])


def test_ranks_keep_their_own_sums_after_computing(ranks: list[dict[str, Any]]) -> None:
    first, second, _ = ranks
    own = [key for key in first if key.endswith("/own")]
    for key in own:
        share = (100, N - 100) if "/ragged/" in key else (N, 0)
        assert (first[key], second[key]) == share, key


def test_a_rank_that_never_updated_takes_part(ranks: list[dict[str, Any]]) -> None:
    assert [r["never updated on one rank"] for r in ranks] == [1, 1, 1]

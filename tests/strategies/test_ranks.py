"""Two processes are one: the same mechanism, the same parameters on each, noise once; and nobody waits for nobody."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant
from tests.strategies.scripts.ranks import WIDE, main

pytestmark = [pytest.mark.multi_process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"


def start(script: str, *arguments: str) -> None:
    """Runs a script; a rank that waits for ever is a failure after three minutes."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPTS / script), *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=arguments[0],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]


Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What each of two ranks saw, and what one process alone saw."""
    folder = tmp_path_factory.mktemp("ranks")
    start("ranks.py", str(folder), "2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(folder, 1)
    first, second, alone = (torch.load(folder / name, weights_only=True) for name in ("2-0.pt", "2-1.pt", "1-0.pt"))
    return first, second, alone


EXACT = ("whole", "split", "sparse", "sparse_split", "units", "cut", "adaptive", "bam", "sat", "complex", "thawed")


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_are_one_without_noise(name: str, ranks: tuple[Found, Found, Found]) -> None:
    first, second, alone = ranks
    assert torch.equal(first[name]["parameters"], second[name]["parameters"])
    torch.testing.assert_close(first[name]["parameters"], alone[name]["parameters"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_ranks_share_one_batch_and_keep_in_step(name: str, ranks: tuple[Found, Found, Found]) -> None:
    """The loader's batch size is that of both together; each rank runs the same number of forward passes."""
    first, second, alone = ranks
    steps = {"sparse": 30, "sparse_split": 15, "units": 6, "adaptive": 4}.get(name, 8)
    assert [r[name]["steps"] for r in ranks] == [r[name]["ledger"] for r in ranks] == [steps] * 3
    assert len({r[name]["sample_rate"] for r in ranks}) == len({r[name]["batches"] for r in ranks}) == 1
    assert len(first[name]["sizes"]) == len(second[name]["sizes"])
    if name == "whole":
        assert sum(first[name]["sizes"]) + sum(second[name]["sizes"]) == sum(alone[name]["sizes"])


def test_a_rank_without_samples_runs_along(ranks: tuple[Found, Found, Found]) -> None:
    """At one expected sample a rank is mostly empty: it ran a stand-in in every step, with a reduction in each."""
    first, second, _ = ranks
    assert len(first["sparse"]["sizes"]) == len(second["sparse"]["sizes"]) == 30
    moved = first["sparse"]["gradients"].any(1)
    assert 0 < int(moved.sum()) < 30


def test_ranks_hold_equal_parameters_after_noisy_steps(ranks: tuple[Found, Found, Found]) -> None:
    first, second, alone = ranks
    assert torch.equal(first["noisy"]["parameters"], second["noisy"]["parameters"])
    assert torch.equal(first["noisy"]["gradients"], second["noisy"]["gradients"])
    assert not torch.allclose(first["noisy"]["parameters"], alone["noisy"]["parameters"])


def test_what_is_unfrozen_gets_equal_noise_on_all_ranks(ranks: tuple[Found, Found, Found]) -> None:
    first, second, _ = ranks
    assert torch.equal(first["thawed_noisy"]["gradients"], second["thawed_noisy"]["gradients"])
    frozen = (first["thawed_noisy"]["gradients"] == 0).sum(1)
    assert frozen.tolist() == [6 * 8 + 8] * 4 + [0] * 4
    assert torch.equal(first["thawed_noisy"]["parameters"], second["thawed_noisy"]["parameters"])


def test_complex_parameters_are_equal_on_all_ranks(ranks: tuple[Found, Found, Found]) -> None:
    """Their parts are shared out, noised, summed and put together again."""
    first, second, alone = ranks
    assert first["complex_noisy"]["parameters"].is_complex()
    assert torch.equal(first["complex_noisy"]["parameters"], second["complex_noisy"]["parameters"])
    assert not torch.allclose(first["complex_noisy"]["parameters"], alone["complex_noisy"]["parameters"])


def test_ranks_move_along_one_release(ranks: tuple[Found, Found, Found]) -> None:
    """The last private gradient is the same on all ranks, so they take the next one at the same point."""
    first, second, _ = ranks
    assert torch.equal(first["sat_noisy"]["parameters"], second["sat_noisy"]["parameters"])


def test_the_threshold_is_one_on_all_ranks(ranks: tuple[Found, Found, Found]) -> None:
    """With its noise, which comes once; without, it is that of one process, empty ranks and splits included."""
    first, second, alone = ranks
    assert first["adaptive_noisy"]["bound"] == second["adaptive_noisy"]["bound"] != alone["adaptive_noisy"]["bound"]
    assert torch.equal(first["adaptive_noisy"]["parameters"], second["adaptive_noisy"]["parameters"])
    assert first["adaptive"]["bound"] == second["adaptive"]["bound"] != 0.3
    assert first["adaptive"]["bound"] == pytest.approx(alone["adaptive"]["bound"], rel=1e-6)


def test_ranks_hold_equal_networks_after_manual_steps(ranks: tuple[Found, Found, Found]) -> None:
    """The generator's latents differ from rank to rank; its gradient is averaged, the discriminator's summed."""
    first, second, alone = ranks
    assert torch.equal(first["gan"]["parameters"], second["gan"]["parameters"])
    assert [r["gan"]["ledger"] for r in ranks] == [4, 4, 4]
    assert not torch.equal(first["gan"]["parameters"], alone["gan"]["parameters"])


@pytest.mark.parametrize("name", ["langevin", "langevin_on_disk"])
def test_ranks_hold_equal_posterior_samples(name: str, ranks: tuple[Found, Found, Found]) -> None:
    """Bit for bit, in memory or in one folder; test and calibration average them over the data of both ranks."""
    first, second, alone = (r[name] for r in ranks)
    assert first["steps"] == second["steps"] == alone["steps"] == (4, 6, 8)
    for a, b in zip(first["samples"], second["samples"], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert first["temperature"] == second["temperature"] == alone["temperature"]
    assert first["ledger"] == second["ledger"] == alone["ledger"] == 8
    assert first["eps"] == alone["eps"]
    assert first["result"] == pytest.approx(second["result"])
    assert first["result"]["loss"] == pytest.approx(first["result"]["test/posterior_nll"], rel=1e-5)
    if name == "langevin_on_disk":  # without noise the number of ranks changes nothing
        assert first["result"] == pytest.approx(alone["result"], rel=1e-2, abs=1e-3)


def test_eps_does_not_depend_on_the_number_of_ranks(ranks: tuple[Found, Found, Found]) -> None:
    assert len({r["noisy"]["eps"] for r in ranks}) == len({r["noisy"]["noise_multiplier"] for r in ranks}) == 1
    assert 2.94 < ranks[0]["noisy"]["eps"] <= 3


def test_the_noise_of_all_ranks_together_is_that_of_one(ranks: tuple[Found, Found, Found]) -> None:
    """Std sigma C on every coordinate: 150 000 draws, in eight slices; each within 5 standard errors (1e-5 in all)."""
    for found in (ranks[0], ranks[2]):
        (noise,) = found["noise"]["gradients"].double() * 16 / (3.0 * 0.5)
        assert noise.numel() == 6 * WIDE
        assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
        for part in noise.chunk(8):  # a rank's slice that was missed or drawn twice would show in its own
            assert abs(float(part.std()) - 1) < 5 / math.sqrt(2 * part.numel())
        assert noise.unique().numel() > 0.9 * noise.numel()  # no slice is a copy of another


def test_a_rewound_run_has_one_ledger_on_all_ranks(ranks: tuple[Found, Found, Found]) -> None:
    """Eight steps, a checkpoint written by rank 0, read by both, eight more: sixteen, and not more on one of them."""
    assert [r["rewound"]["ledger"] for r in ranks] == [16, 16, 16]
    assert len({r["rewound"]["eps"] for r in ranks}) == 1


def test_the_parent_of_workers_knows_what_they_spent(tmp_path: Path) -> None:
    start("workers.py", str(tmp_path), "works")
    found = json.loads((tmp_path / "workers.json").read_text())
    expected = get_accountant("pld").epsilon([LedgerEntry(GaussianEvent(1.0, 0.25), 8)], 1e-3)
    assert found == {"failed": "", "eps": pytest.approx(expected), "ledger": 8, "moved": True}


def test_the_parent_of_failed_workers_quotes_no_eps(tmp_path: Path) -> None:
    start("workers.py", str(tmp_path), "fails")
    found = json.loads((tmp_path / "workers.json").read_text())
    assert found["failed"]
    assert found["eps"] is None

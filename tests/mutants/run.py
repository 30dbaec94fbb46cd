"""The mutation check: plants one fault after the other in a copy of the package, and demands that a test turns red.

    python tests/mutants/run.py                 all faults, two at a time
    python tests/mutants/run.py --only noise    those with "noise" in their names
    python tests/mutants/run.py --jobs 1

Nothing outside a temporary folder is written. The exit code is 0 only if all the tests are green without a fault, every
fault turns one of its tests red, and every fault could be planted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]  # also when run as a script

from tests.mutants.fault import Mutant  # noqa: E402
from tests.mutants.mutants import MUTANTS  # noqa: E402

COPIED = ("lightning_dp", "tests", "pyproject.toml")
TIME_LIMIT = 600  # seconds a fault: a hang is no red test
GREEN, RED = 0, 1  # pytest's exit codes; anything else is a broken run, which proves nothing

__all__ = ("check", "misplaced", "run_tests", "survivors")


def misplaced(mutant: Mutant, root: Path = ROOT) -> list[str]:
    """Why the fault cannot be planted in the code as it is; empty if it can."""
    reasons = []
    for edit in mutant.edits:
        found = (root / edit.file).read_text().count(edit.old)
        if found != 1:
            reasons.append(f"{edit.file} holds {found} times: {edit.old.strip().splitlines()[0]}")
    return reasons


def check(mutant: Mutant, root: Path = ROOT) -> str:
    """Plants the fault in a fresh copy and runs its tests: "caught", or what is wrong."""
    if reasons := misplaced(mutant, root):
        return "NOT PLANTED: " + "; ".join(reasons)
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(root, Path(folder))
        for edit in mutant.edits:
            path = copy / edit.file
            path.write_text(path.read_text().replace(edit.old, edit.new))
        code, output = run_tests(copy, mutant.tests)
    if code == RED:
        return "caught"
    return "SURVIVED" if code == GREEN else f"BROKEN RUN ({code}): {output[-2000:]}"


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests in the copy at ``root``, and makes sure that it is the copy's package that they import."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    script = (
        # Found and not imported: pytest must be the first to import what its plugins rewrite.
        "import importlib.util, pathlib, sys, pytest\n"
        "origin = importlib.util.find_spec('lightning_dp').origin\n"
        "assert pathlib.Path(origin).resolve().parents[1] == pathlib.Path(sys.argv[1]).resolve()\n"
        "sys.exit(pytest.main(sys.argv[2:]))\n"
    )
    options = ["-p", "no:cacheprovider", "-x", "-q", "--no-header"]
    command = [sys.executable, "-c", script, str(root), *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {TIME_LIMIT} s"
    return done.returncode, done.stdout + done.stderr


def baseline(mutants: Sequence[Mutant], root: Path = ROOT) -> str:
    """Runs all tests of the mutants on an unchanged copy: "green", or what is wrong."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with tempfile.TemporaryDirectory() as folder:
        code, output = run_tests(_copy(root, Path(folder)), tests)
    return "green" if code == GREEN else f"RED ({code}) without any fault: {output[-3000:]}"


def survivors(mutants: Sequence[Mutant], jobs: int) -> list[str]:
    """Checks the mutants and prints a table; the names of those that were not caught."""
    missed = []
    width = max(len(mutant.name) for mutant in mutants)
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, verdict in zip(mutants, pool.map(check, mutants), strict=True):
            print(f"{mutant.name:{width}}  {verdict}", flush=True)
            if verdict != "caught":
                missed.append(mutant.name)
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plant known privacy faults and demand that tests turn red.")
    parser.add_argument("--only", default="", help="names that contain this text")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="processes at a time")
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not mutants:
        print(f"no fault has {options.only!r} in its name")
        return 2
    verdict = baseline(mutants)
    print(f"without a fault: {verdict}", flush=True)
    if verdict != "green":
        return 1
    missed = survivors(mutants, options.jobs)
    print(f"{len(mutants) - len(missed)} of {len(mutants)} faults caught" + (f"; missed: {missed}" if missed else ""))
    return 1 if missed else 0


def _copy(root: Path, folder: Path) -> Path:
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "mutants"))
        else:
            shutil.copy2(source, folder / name)
    return folder


if __name__ == "__main__":
    sys.exit(main())

"""Cost of one training step in time and memory, and of everything beside it: prints a table, writes JSON and a plot.

    python -m benchmarks.step_cost [--networks mlp cnn] [--contenders plain lightning_dp] [--rounds 11]

Every contender steps the same weights and the same batch, noise and optimizer step included. In each round each contender
makes one step, in turn; the table gives medians over rounds and the ratio to the plain step. Peak memory is the most
resident memory above that of a process that only imported the libraries, one process for each contender.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.contenders import CONTENDERS, Step
from benchmarks.networks import NETWORKS

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
WARM_UP, MEMORY_STEPS = 3, 4
PACKAGES = ("torch", "opacus", "timm", "numpy", "lightning-dp")


def contestants(network: str, names: list[str]) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that run, and why the others do not."""
    torch.manual_seed(0)
    model = NETWORKS[network].build().train()
    x, y = NETWORKS[network].batch(torch.Generator().manual_seed(0))
    steps: dict[str, Step] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            step = CONTENDERS[name](copy.deepcopy(model), x, y)
            for _ in range(WARM_UP):
                step()
            steps[name] = step
        except Exception as error:  # a contender that cannot run this network is part of the result
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return steps, reasons


def times(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's step, round by round."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - start)
    return found


def resident(key: str) -> float:
    """A figure of this process's memory in MiB (Linux); ``VmRSS`` is now, ``VmHWM`` the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{key} is not in /proc/self/status")


def own_peak(network: str, contender: str) -> float:
    """Peak memory of a few steps above the import baseline, in this process."""
    F.conv2d(torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3))  # the libraries' own workspaces
    before = resident("VmRSS")
    torch.manual_seed(0)
    x, y = NETWORKS[network].batch(torch.Generator().manual_seed(0))
    step = CONTENDERS[contender](NETWORKS[network].build().train(), x, y)
    for _ in range(MEMORY_STEPS):
        step()
    return resident("VmHWM") - before


def peak(network: str, contender: str, repeats: int = 1) -> float | None:
    """Median peak memory over ``repeats`` processes of their own."""
    command = [sys.executable, "-m", "benchmarks.step_cost", "--peak", network, contender]
    figures = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        figures.append(float(done.stdout.split()[-1]))
    return statistics.median(figures)


def measure(networks: list[str], names: list[str], rounds: int, memory_of: list[str]) -> dict[str, object]:
    """The whole table; peak memory for some of the contenders."""
    table: dict[str, dict[str, dict[str, object]]] = {}
    for network in networks:
        steps, reasons = contestants(network, names)
        found = times(steps, rounds)
        base = statistics.median(found["plain"])
        del steps
        rows: dict[str, dict[str, object]] = {name: {"reason": reason} for name, reason in reasons.items()}
        for name, seconds in found.items():
            middle = statistics.median(seconds)
            rows[name] = {
                "milliseconds": 1e3 * middle,
                "spread": [1e3 * min(seconds), 1e3 * max(seconds)],
                "ratio": middle / base,
                "peak_mib": peak(network, name) if platform.system() == "Linux" and name in memory_of else None,
            }
        table[network] = rows
        say_row(network, rows)
    return {"versions": versions(), "threads": torch.get_num_threads(), "rounds": rounds, "table": table}


def versions() -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def say_row(network: str, rows: dict[str, dict[str, object]]) -> None:
    """Prints one network's results."""
    print(f"\n{NETWORKS[network].says}")
    plain_peak = rows["plain"]["peak_mib"]
    for name, row in rows.items():
        if "reason" in row:
            print(f"  {name:13s} does not run: {row['reason']}")
            continue
        memory = row["peak_mib"]
        share = f"{memory:8.0f} MiB  x{memory / plain_peak:5.2f}" if memory and plain_peak else ""  # type: ignore[operator]
        print(f"  {name:13s} {row['milliseconds']:9.1f} ms  x{row['ratio']:6.2f} {share}", flush=True)


def markdown(result: dict[str, object]) -> str:
    """The table for the documentation: time ratio, and memory ratio in parentheses."""
    table: dict[str, dict[str, dict[str, float]]] = result["table"]  # type: ignore[assignment]
    names = list(dict.fromkeys(name for rows in table.values() for name in rows))
    names = [name for name in names if any("ratio" in rows.get(name, {}) for rows in table.values())]
    lines = ["| network | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for network, rows in table.items():
        cells = []
        for name in names:
            row = rows.get(name, {})
            if "ratio" not in row:
                cells.append("does not run")
            elif name == "plain":
                memory = f", {row['peak_mib']:.0f} MiB" if row["peak_mib"] else ""
                cells.append(f"{row['milliseconds']:.1f} ms{memory}")
            else:
                memory = f" ({row['peak_mib'] / rows['plain']['peak_mib']:.2f})" if row["peak_mib"] else ""
                cells.append(f"{row['ratio']:.2f}{memory}")
        lines.append(f"| {NETWORKS[network].says} | " + " | ".join(cells) + " |")
    found = ", ".join(f"{key} {value}" for key, value in result["versions"].items())  # type: ignore[attr-defined]
    note = f"Time of a step over the plain step; in parentheses peak memory over the plain step's. {found}; {result['threads']}"
    return "\n".join([*lines, "", f"{note} threads, medians of {result['rounds']} rounds.", ""])


def plot(result: dict[str, object], path: Path) -> None:
    """Bars of the ratio to the plain step."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    table: dict[str, dict[str, dict[str, float]]] = result["table"]  # type: ignore[assignment]
    names = [
        name for name in CONTENDERS if name != "plain" and any("ratio" in rows.get(name, {}) for rows in table.values())
    ]
    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places = [i + number * width for i, rows in enumerate(table.values()) if "ratio" in rows.get(name, {})]
        ratios = [rows[name]["ratio"] for rows in table.values() if "ratio" in rows.get(name, {})]
        bars = axes.bar(places, ratios, width, label=name.replace("_", "-"))
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=7)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(table))], list(table))
    axes.set_yscale("log")
    axes.set_ylabel("time of a step over the plain step")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--memory", nargs="*", default=list(CONTENDERS), help="contenders whose peak memory is measured"
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for step_cost.json and step_cost.png")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.peak:
        print(own_peak(*arguments.peak))
        return
    names = list(dict.fromkeys(["plain", *arguments.contenders]))
    result = measure(arguments.networks, names, arguments.rounds, arguments.memory)
    print(f"\n{result['versions']}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "step_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "step_cost.txt").write_text(markdown(result))
    plot(result, arguments.out / "step_cost.png")


if __name__ == "__main__":
    main()

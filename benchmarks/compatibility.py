"""Which of timm's networks the engine trains exactly: one member of every module family against a plain loop.

    python benchmarks/compatibility.py            # measure what is missing in docs/compatibility.json, then write the page
    python benchmarks/compatibility.py --again    # measure everything anew
    python benchmarks/compatibility.py vgg swin_transformer    # some families
    python benchmarks/compatibility.py --page     # only write the page

For each family of `timm.list_modules()`: its smallest member (timm's own `test_*` networks left out), at most 30 million
parameters with ten classes, batch normalisation replaced, dropout and drop-path off, images as small as the network takes.
The truth is one ordinary backward pass for each sample; the engine's clipped sum is compared parameter by parameter, in
float64, where rounding cannot blur a fault, and in float32, which people train in. The bound is low enough to clip every
sample. Every network runs in a process of its own under a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS, PAGE = ROOT / "docs" / "compatibility.json", ROOT / "docs" / "compatibility.md"
MAX_PARAMETERS = 30_000_000
SIZES = (64, 96, 112, 128, 160, 192, 224, 240, 256)
SAMPLES, CLASSES, TOLERANCE = 3, 10, 1e-4
TIME_LIMIT, MEMORY_LIMIT = 300, 12  # seconds of processor time, GiB
BEGIN, END = "<!-- begin of the generated table -->", "<!-- end of the generated table -->"


# --- which networks -------------------------------------------------------------------------------------------
def smallest_members() -> dict[str, tuple[str, int]]:
    """For each family: the member with the fewest parameters, and how many they are."""
    import timm

    found = {}
    for family in timm.list_modules():
        members = [name for name in timm.list_models(module=family) if not name.startswith("test_")]
        sizes = {}
        for name in members:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sizes[name] = sum(p.numel() for p in timm.create_model(name, num_classes=CLASSES).parameters())
        if sizes:
            name = min(sizes, key=lambda n: sizes[n])
            found[family] = (name, sizes[name])
    return found


# --- one network, in a process of its own ---------------------------------------------------------------------
def build(name: str) -> tuple[nn.Module, int]:
    """The network in training mode, deterministic, with no parameter at a constant; and the side of its images."""
    import timm

    torch.manual_seed(0)
    reason: Exception | None = None
    for size in SIZES:
        for options in ({"img_size": size}, {}):
            try:
                model = prepared(timm.create_model(name, num_classes=CLASSES, **options))
                with torch.no_grad():
                    model(torch.zeros(2, channels(model), size, size))
                return model, size
            except Exception as error:
                reason = error
    raise RuntimeError(f"no image size up to {SIZES[-1]} fits: {reason}")


def prepared(model: nn.Module) -> nn.Module:
    """Without batch normalisation and dropout, and with nothing at a value that would hide what is behind it."""
    from lightning_dp import replace_batch_norm

    replace_batch_norm(model)
    for module in model.modules():
        for name_of_rate, rate in list(vars(module).items()):
            if isinstance(rate, float) and (
                "drop" in name_of_rate or isinstance(module, nn.modules.dropout._DropoutNd)
            ):
                setattr(module, name_of_rate, 0.0)
    with torch.no_grad():  # layer scales of 1e-6 and weights of zero
        for p in model.parameters():
            if p.numel() == 1 or float(p.std()) < 1e-3:
                p.add_(0.2 * torch.randn_like(p))
    return model.train()


def channels(model: nn.Module) -> int:
    return int(getattr(model, "default_cfg", {}).get("input_size", (3,))[0])


def total_loss(outputs: Any, labels: Tensor) -> Tensor:
    """Mean over samples of the cross-entropy, summed over several heads where a network has them."""
    heads = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return torch.stack([F.cross_entropy(head.flatten(1), labels) for head in heads]).sum()


def plain_gradients(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(total_loss(model(x), labels), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([g.double().norm() for g in gradients]).norm())


def error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The worst parameter's deviation, relative to its own norm; one that hardly matters is held to 0.1 % of the whole."""
    floor = 1e-3 * norm(truth)
    return max(
        float((a.double() - b.double()).norm()) / max(float(b.double().norm()), floor)
        for a, b in zip(found, truth, strict=True)
    )


def clipped_sum(model: nn.Module, x: Tensor, labels: Tensor, bound: float, memory: Any) -> list[Tensor]:
    """The engine's, on one batch."""
    from lightning_dp.gradients import Clipping, GradientEngine

    options: dict[str, Any] = {"noise_multiplier": 0.0, "expected_batch_size": 1, "row_memory": memory}
    with GradientEngine(model, Clipping(bound), **options) as engine:
        engine.expect(len(x))
        engine.backward(total_loss(model(x), labels), len(x))
        return engine.clipped_sum()


def compare(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """The engine's clipped sum beside the loop over samples."""
    from lightning_dp import PrivacyError
    from lightning_dp.gradients import RowMemory

    samples = [plain_gradients(model, x[i : i + 1], labels[i : i + 1]) for i in range(len(x))]
    bound = 0.1 * min(norm(sample) for sample in samples)
    truth = [sum(bound / norm(s) * s[i] for s in samples) for i in range(len(samples[0]))]
    batch = plain_gradients(model, x, labels)
    coupling = error([g * len(x) for g in batch], [sum(s[i] for s in samples) for i in range(len(batch))])
    del samples, batch
    memory = RowMemory()
    # As the strategy's self-check does: batches of several sizes tell what is shared by a batch, and who reads which weight.
    for size in (1, 2, len(x)):
        while True:
            read = dict(memory.borrowed)
            try:
                found = clipped_sum(model, x[:size], labels[:size], bound, memory)
                break
            except PrivacyError:
                if memory.borrowed == read:
                    raise
    return {"error": error(found, truth), "coupling": coupling}


def measure(name: str) -> dict[str, Any]:
    """One row of the table, without the family."""
    from lightning_dp import PrivacyConfigError, PrivacyError

    result: dict[str, Any] = {"model": name}
    try:
        model, size = build(name)
        result |= {"parameters": sum(p.numel() for p in model.parameters()), "image_size": size}
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, channels(model), size, size, generator=generator)
        labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        result["float32"] = compare(model, x, labels)
        if result["float32"]["error"] > TOLERANCE:  # rounding, or a fault? In float64 only a fault remains
            result["float64"] = compare(model.double(), x.double(), labels)
    except (PrivacyError, PrivacyConfigError) as refusal:
        return result | {"outcome": "refused", "reason": str(refusal)}
    except Exception as failure:
        return result | {"outcome": "error", "reason": f"{type(failure).__name__}: {failure}"}
    judged = result.get("float64") or result["float32"]
    if judged["coupling"] > TOLERANCE:
        return result | {"outcome": "error", "reason": f"the network couples its samples ({judged['coupling']:.1%})"}
    if judged["error"] <= TOLERANCE:
        return result | {"outcome": "exact"}
    # The loop above is without the checks that every private run begins with: do they refuse the network?
    refused = coupling_found(name)
    return result | ({"outcome": "refused", "reason": f"self-check: {refused}"} if refused else {"outcome": "wrong"})


def coupling_found(name: str) -> str | None:
    """What the self-check of a private run says about samples that depend on each other."""
    import lightning_dp

    model, size = build(name)
    report = lightning_dp.inspect(model, torch.randn(5, channels(model), size, size))
    return next((problem.message for problem in report.problems), None)


def in_own_process(name: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10 * TIME_LIMIT)
        return dict(json.loads(run.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"model": name, "outcome": "error", "reason": f"took more than {TIME_LIMIT} s"}
    except (IndexError, json.JSONDecodeError):
        return {"model": name, "outcome": "error", "reason": f"died with code {run.returncode}: {run.stderr[-200:]}"}


# --- the whole sweep ------------------------------------------------------------------------------------------
@contextlib.contextmanager
def stored() -> Iterator[dict[str, dict[str, Any]]]:
    """The results by family, read before and written after."""
    results = json.loads(RESULTS.read_text())["families"] if RESULTS.is_file() else {}
    yield results
    import timm

    versions = {"torch": torch.__version__.split("+")[0], "timm": timm.__version__}
    document = {"versions": versions, "families": dict(sorted(results.items()))}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def sweep(families: Sequence[str], again: bool) -> None:
    with stored() as results:
        if not results or again:
            for family, (name, count) in smallest_members().items():
                results[family] = {"model": name, "parameters": count}
        wanted = families or [family for family, row in results.items() if "outcome" not in row]
    for family in wanted:
        started = time.perf_counter()
        row = {key: results[family][key] for key in ("model", "parameters")}
        too_large = row["parameters"] > MAX_PARAMETERS
        row |= {"outcome": "too large"} if too_large else in_own_process(row["model"])
        with stored() as now:
            now[family] = row
        print(family, row["outcome"], f"{time.perf_counter() - started:.0f} s", flush=True)


# --- the page -------------------------------------------------------------------------------------------------
def write_page() -> None:
    """Puts the table between the page's two marks."""
    document = json.loads(RESULTS.read_text())
    families, versions = document["families"], document["versions"]
    measured = {family: row for family, row in families.items() if row.get("outcome", "too large") != "too large"}
    exact = sum(row["outcome"] == "exact" for row in measured.values())
    lines = [
        f"{exact} of {len(measured)} families exact ({exact / max(len(measured), 1):.0%}), with torch {versions['torch']} and "
        f"timm {versions['timm']}. {len(families) - len(measured)} more have no member below 30 million parameters.",
        "",
        "| family | network | parameters | image | outcome | error |",
        "|---|---|---:|---:|---|---:|",
    ]
    for family, row in sorted(measured.items()):
        found = row.get("float64") or row.get("float32")
        error_shown = f"{found['error']:.0e}" + (" (float64)" if "float64" in row else "") if found else ""
        size = row.get("image_size", "")
        millions = f"{row['parameters'] / 1e6:.1f} M"
        lines.append(f"| {family} | `{row['model']}` | {millions} | {size} | {row['outcome']} | {error_shown} |")
    reasons = [(family, row["reason"]) for family, row in sorted(measured.items()) if "reason" in row]
    lines += ["", *(f"- **{family}**: {reason.split('. ')[0]}." for family, reason in reasons)]
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + "\n\n" + "\n".join(lines).rstrip() + "\n\n" + text[end:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="families to measure (default: all that are not measured yet)")
    parser.add_argument("--again", action="store_true", help="choose the members and measure them anew")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT, TIME_LIMIT))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT << 30, MEMORY_LIMIT << 30))
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.one)))
        return
    if not arguments.page:
        sweep(arguments.families, arguments.again)
    write_page()


if __name__ == "__main__":
    main()

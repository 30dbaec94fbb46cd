"""What privacy costs and what it prevents, eps from 1 to a billion: accuracy, bounds on reconstruction, and attacks that try.

python recipes/reconstruction_tradeoff/tradeoff.py
python recipes/reconstruction_tradeoff/tradeoff.py --eps 1 1e3 1e9 --seeds 0 --figure tradeoff.svg
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lightning_dp import DPStrategy, ReconstructionRiskMonitor
from lightning_dp.data import FashionMNISTDataModule
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import GroupNormMLP
from lightning_dp.tasks import ClassificationTask

EPS = (1.0, 8.0, 1e2, 1e4, 1e5, 1e6, 1e7, 1e9, math.inf)
SEEDS = (0, 1, 2)
PIXELS = 28 * 28
BATCH = 1024
BOUND = 0.1
RECOGNISED = 0.1  # squared error over the squared norm of the picture: at most that is a success


@dataclass(frozen=True)
class Row:
    """One training, the bounds of its ledger, and the attacks on one of its steps."""

    eps: float
    seed: int
    noise_multiplier: float
    accuracy: float
    worst_case: float
    relaxed: float
    imprint: float
    sparse: float
    seconds: float


class Imprint(nn.Module):
    """A malicious layer with a row for each bin of brightness: from neighbouring rows of its gradient pictures can be read.

    Fowl et al. 2021 (arXiv 2110.13057): all rows measure the brightness of a picture against thresholds one above the other. A
    row is active for the pictures above its threshold, so that the difference of two rows' gradients is the sum of the
    pictures between two thresholds, often a single one. ``sparse``: a row is active between its threshold and the next
    alone (their section on sparse variants); then clipping leaves a picture's whole gradient to one row, which is as much
    as an attack can want.

    Args:
        thresholds: rising, ``(bins + 1,)``.
        sparse: which of the two.
    """

    def __init__(self, thresholds: Tensor, sparse: bool) -> None:
        super().__init__()
        self.sparse, bins = sparse, len(thresholds) - 1
        self.layer = nn.Linear(PIXELS, bins)
        self.register_buffer("widths", thresholds.diff())
        with torch.no_grad():
            self.layer.weight.fill_(1.0 / PIXELS)
            self.layer.bias.copy_(-thresholds[:-1])

    def forward(self, pictures: Tensor) -> Tensor:
        """The sum of the active rows, for each picture."""
        above = self.layer(pictures.flatten(1))
        active = (above > 0) & (above < self.widths) if self.sparse else above > 0
        return (above * active).sum(1)

    def pictures(self) -> Tensor:
        """What the private gradient shows in each bin, up to a factor: ``(bins, pixels)``."""
        seen = self.layer.weight.grad
        assert seen is not None
        return seen if self.sparse else seen - torch.cat([seen[1:], torch.zeros_like(seen[:1])])


def attack(batch: Tensor, public: Tensor, noise_multiplier: float, sparse: bool) -> float:
    """Share of a batch's pictures that are recognised in the private gradient of a malicious network.

    Args:
        batch: the pictures of one step, ``(n, 1, 28, 28)``.
        public: other pictures, from which the attacker knows how brightness is spread.
        noise_multiplier: of the step.
        sparse: see `Imprint`.
    """
    levels = public.flatten(1).mean(1).quantile(torch.linspace(0, 1, 2 * BATCH + 1))
    module = Imprint(levels, sparse)
    engine = GradientEngine(
        module, Clipping(BOUND), noise_multiplier=noise_multiplier, expected_batch_size=BATCH, loss_reduction="sum"
    )
    with engine:
        engine.backward(module(batch).sum(), len(batch))
        engine.write_gradients()
    truth, seen = batch.flatten(1), module.pictures()
    # Scaled to the picture that is compared, which gives the attack the benefit of the doubt: it need not know the scale.
    cosine = nn.functional.normalize(truth) @ nn.functional.normalize(seen).T
    error = 1.0 - cosine.clamp(min=0).amax(1).square()
    return float((error <= RECOGNISED).double().mean())


def train(eps: float, seed: int, steps: int, root: str | None = None) -> Row:
    """One training with its bounds, and both attacks on one batch with its noise."""
    start = time.perf_counter()
    seed_everything(seed, verbose=False)  # initial weights and the attacked batch; the privacy noise has no seed
    data = FashionMNISTDataModule(root=root, batch_size=BATCH)
    private = math.isfinite(eps)
    strategy = DPStrategy(eps=eps, delta=1e-6, max_grad_norm=BOUND) if private else None
    monitor = ReconstructionRiskMonitor(every_n_epochs=0)  # kappa = 1/n
    trainer = Trainer(
        strategy="auto" if strategy is None else strategy,
        callbacks=[monitor],
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    task = ClassificationTask(GroupNormMLP(PIXELS, 128), lr=8.0 if private else 0.1, momentum=0.9, lr_schedule="cosine")
    trainer.fit(task, data)
    (result,) = trainer.test(task, data, verbose=False)
    corridor = monitor.corridor
    worst, relaxed = (1.0, 1.0) if corridor is None else (row.probability for row in corridor.rows()[:2])
    sigma = 0.0 if strategy is None else strategy.noise_multiplier
    found = attacks(data, sigma)
    return Row(eps, seed, sigma, result["test/accuracy"], worst, relaxed, *found, time.perf_counter() - start)


def attacks(data: Any, noise_multiplier: float) -> tuple[float, float]:
    """Both attacks on one batch drawn as a step draws it."""
    pictures = data.train_dataloader().dataset.tensors[0]
    public = next(iter(data.test_dataloader()))[0]
    batch = pictures[torch.rand(len(pictures)) < BATCH / len(pictures)]
    return attack(batch, public, noise_multiplier, False), attack(batch, public, noise_multiplier, True)


def main(
    eps_grid: Sequence[float] = EPS,
    seeds: Sequence[int] = SEEDS,
    steps: int = 200,
    figure: Path | None = None,
    table: Path | None = None,
    root: str | None = None,
) -> list[Row]:
    """All runs; prints the table of the README and draws the figure."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = [train(eps, seed, steps, root) for eps in eps_grid for seed in seeds]
    print("     eps     sigma  accuracy         worst case  relaxed    imprint          sparse imprint   seconds")
    for eps in eps_grid:
        chosen = [row for row in rows if row.eps == eps]
        print(
            f"{eps:>8g}  {chosen[0].noise_multiplier:>8.3g}  {spread([row.accuracy for row in chosen])}  "
            f"{chosen[0].worst_case:<10.3g}  {chosen[0].relaxed:<9.3g}  {spread([row.imprint for row in chosen])}  "
            f"{spread([row.sparse for row in chosen])}  {max(row.seconds for row in chosen):.0f}"
        )
    print(", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting")))
    if table is not None:
        table.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if figure is not None:
        draw(rows, figure)
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({deviation:.3f})"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy and all chances of reconstruction over eps, in one figure; the type of file follows the name."""
    from matplotlib.figure import Figure

    grid = sorted({row.eps for row in rows if math.isfinite(row.eps)})

    def mean(name: str, eps: float) -> float:
        return statistics.mean(getattr(row, name) for row in rows if row.eps == eps)

    picture = Figure(figsize=(7, 4.6), layout="constrained")
    axes = picture.subplots()
    lines = (
        ("accuracy", "test accuracy", "C0", "o-"),
        ("worst_case", "worst case (guarantee)", "C3", "s-"),
        ("relaxed", "relaxed attacker (no guarantee)", "C1", "^-"),
        ("sparse", "sparse imprint attack (measured)", "C2", "d--"),
        ("imprint", "imprint attack (measured)", "C4", "v--"),
    )
    for name, words, colour, style in lines:
        axes.plot(grid, [mean(name, eps) for eps in grid], style, color=colour, label=words, markersize=4)
    if any(math.isinf(row.eps) for row in rows):
        axes.axhline(
            mean("accuracy", math.inf), color="C0", linestyle=":", linewidth=1, label="accuracy without privacy"
        )
    axes.set(
        xscale="log", ylim=(-0.02, 1.02), xlabel="eps at delta = 1e-6", ylabel="accuracy, or chance of reconstruction"
    )
    picture.legend(loc="outside lower center", ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, nargs="+", default=list(EPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--figure", type=Path, default=Path("tradeoff.svg"))
    parser.add_argument("--table", type=Path, default=None, help="also write all runs, as JSON")
    parser.add_argument("--root", default=None, help="folder of Fashion-MNIST, if not Debian's")
    given = parser.parse_args()
    main(given.eps, given.seeds, given.steps, given.figure, given.table, given.root)

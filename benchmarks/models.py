"""Cost of one private step of the package's own networks, beside the plain step: time and peak memory.

    python -m benchmarks.models [--models resnet9 mesh] [--rounds 11]

The same weights and batch for both, noise and optimizer step included, in turn; medians over rounds. Peak memory is the most
resident memory above that of a process that only imported the libraries, one process for each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders import BOUND, NOISE, RATE
from benchmarks.step_cost import resident, versions
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap, units_of_batch

WARM_UP, MEMORY_STEPS = 3, 4
Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Case:
    """A network, its batch and its loss.

    Attributes:
        says: what it is, for the table.
        units: privacy units in the batch.
        bar: the most that a private step may cost, in plain steps.
        build: makes the network and the mean loss over units as a function of it.
    """

    says: str
    units: int
    bar: float
    build: Callable[[], tuple[nn.Module, Loss]]

    def map(self, loss: Loss) -> UnitMap:
        """Whose each row of the batch is."""
        graphs = getattr(loss, "graphs", None)
        return UnitMap(self.units) if graphs is None else units_of_batch(graphs, self.units)


class GraphLoss:
    """Mean squared error on a batch of graphs."""

    def __init__(self, graphs: Any, target: Tensor) -> None:
        self.graphs, self.target = graphs, target

    def __call__(self, network: nn.Module) -> Tensor:
        """The loss of the network."""
        return F.mse_loss(network(self.graphs), self.target)


def images(model: Callable[[], nn.Module], batch: int, *shape: int, classes: int = 10) -> tuple[nn.Module, Loss]:
    """Classification of random inputs."""
    x, y = torch.randn(batch, *shape), torch.randint(0, classes, (batch,))
    return model(), lambda network: F.cross_entropy(network(x), y)


def resnet9() -> tuple[nn.Module, Loss]:
    """With ScaleNorm, 2.4 million parameters."""
    from lightning_dp.models import ResNet9

    return images(ResNet9, 32, 3, 32, 32)


def smoothnet() -> tuple[nn.Module, Loss]:
    """W10D10: 101,017 parameters."""
    from lightning_dp.models import SmoothNet

    return images(lambda: SmoothNet(width=1.0, depth=10 // 10), 64, 3, 32, 32)


def smoothnet_wide() -> tuple[nn.Module, Loss]:
    """W80D50: 3.4 million parameters."""
    from lightning_dp.models import SmoothNet

    return images(lambda: SmoothNet(width=8.0, depth=5), 16, 3, 32, 32)


def wide_resnet() -> tuple[nn.Module, Loss]:
    """WRN-16-4 with standardised weights."""
    from lightning_dp.models import WideResNet

    return images(lambda: WideResNet(depth=16, width=4), 16, 3, 32, 32)


def chest_xray() -> tuple[nn.Module, Loss]:
    """The chest X-ray study's network, eight labels."""
    from lightning_dp.models import chest_xray_resnet9

    x, y = torch.randn(16, 3, 128, 128), torch.randint(0, 2, (16, 8)).float()
    return chest_xray_resnet9(), lambda network: F.binary_cross_entropy_with_logits(network(x), y)


def volumes() -> tuple[nn.Module, Loss]:
    """2.5D attention over the slices of all views, a small backbone."""
    from lightning_dp.models import SliceNet

    return images(lambda: SliceNet("resnet18", num_classes=2), 4, 1, 28, 28, 28, classes=2)


def segmentation(kind: str, dims: int, batch: int, size: int) -> tuple[nn.Module, Loss]:
    """MoNet or U-Net with the Dice and cross-entropy loss of single samples."""
    from lightning_dp.models import MoNet, UNet, dice_cross_entropy

    x = torch.randn(batch, 1, *[size] * dims)
    y = torch.randint(0, 2, (batch, *[size] * dims))
    model = {"monet": MoNet, "unet": UNet}[kind](dims=dims, filters=16)
    return model, lambda network: dice_cross_entropy(network(x), y).mean()


def mesh() -> tuple[nn.Module, Loss]:
    """GraphSAGE on grids of 500 vertices."""
    from torch_geometric.data import Batch, Data

    from lightning_dp.models import MeshGNN

    side = 20
    place = torch.arange(side * side).view(side, side)
    along = [torch.stack([place[1:].flatten(), place[:-1].flatten()])]
    along += [torch.stack([place[:, 1:].flatten(), place[:, :-1].flatten()])]
    pairs = torch.cat(along, 1)
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    batch = Batch.from_data_list([Data(x=torch.randn(side * side, 3), edge_index=edges) for _ in range(32)])
    return MeshGNN(), GraphLoss(batch, torch.randn(32, 2))


def detector() -> tuple[nn.Module, Loss]:
    """The anchor-free detector on 64 x 64 images with up to six boxes."""
    from lightning_dp.models import AnchorFreeDetector
    from lightning_dp.models.detection import detection_loss

    model = AnchorFreeDetector(15)
    x = torch.rand(32, 3, 64, 64)
    corner = 40 * torch.rand(32, 6, 2)
    boxes, labels = torch.cat([corner, corner + 8 + 12 * torch.rand(32, 6, 2)], -1), torch.randint(0, 15, (32, 6))
    labels[:, 3:] = -1
    return model, lambda network: detection_loss(network(x), boxes, labels, network.stride).mean()


def complex_cnn() -> tuple[nn.Module, Loss]:
    """Complex convolutions, whitening norms and activations on four coils."""
    from lightning_dp.models import ComplexCNN

    x, y = torch.randn(32, 4, 32, 32, dtype=torch.complex64), torch.randint(0, 4, (32,))
    return ComplexCNN(in_channels=4), lambda network: F.cross_entropy(network(x), y)


CASES: dict[str, Case] = {
    "resnet9": Case("ResNet-9 with ScaleNorm, 32x32, batch 32", 32, 1.3, resnet9),
    "smoothnet": Case("SmoothNet W10D10, 32x32, batch 64", 64, 1.3, smoothnet),
    "smoothnet_wide": Case("SmoothNet W80D50, 32x32, batch 16", 16, 1.3, smoothnet_wide),
    "wide_resnet": Case("WRN-16-4, standardised weights, 32x32, batch 16", 16, 1.3, wide_resnet),
    "chest_xray": Case("chest X-ray ResNet-9, 128x128, batch 16", 16, 1.3, chest_xray),
    "volumes": Case("2.5D attention, ResNet-18, 28^3, batch 4", 4, 1.3, volumes),
    "monet": Case("MoNet 2D, 64x64, batch 8", 8, 1.3, lambda: segmentation("monet", 2, 8, 64)),
    "unet": Case("U-Net 2D, 64x64, batch 8", 8, 1.3, lambda: segmentation("unet", 2, 8, 64)),
    "unet_3d": Case("U-Net 3D, 32^3, batch 4", 4, 1.3, lambda: segmentation("unet", 3, 4, 32)),
    "mesh": Case("mesh GNN, 400 vertices, batch 32", 32, 1.3, mesh),
    "detector": Case("anchor-free detector, 64x64, batch 32", 32, 1.6, detector),
    "complex": Case("complex CNN, 4 coils, 32x32, batch 32", 32, 1.6, complex_cnn),
}


def steps_of(name: str, private: bool, plain: bool) -> dict[str, Callable[[], None]]:
    """The steps that were asked for, on copies of one network."""
    torch.manual_seed(0)
    case = CASES[name]
    model, loss = case.build()
    found: dict[str, Callable[[], None]] = {}
    for kind, wanted in (("plain", plain), ("private", private)):
        if wanted:
            found[kind] = _step(copy.deepcopy(model).train(), loss, case.map(loss) if kind == "private" else None)
    return found


def _step(model: nn.Module, loss: Loss, units: UnitMap | None) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    engine: Any = None
    if units is not None:
        engine = GradientEngine(model, Clipping(BOUND), noise_multiplier=NOISE, expected_batch_size=units.num_units)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if engine is None:
            loss(model).backward()
        else:
            engine.backward(loss(model), units)
            engine.write_gradients()
        optimizer.step()

    return step


def peak(name: str, kind: str) -> float:
    """Peak memory of a few steps in a process of its own, MiB."""
    command = [sys.executable, "-m", "benchmarks.models", "--peak", name, kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def own_peak(name: str, kind: str) -> float:
    """The same in this process."""
    F.conv2d(torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3))  # the libraries' own workspaces
    before = resident("VmRSS")
    (step,) = steps_of(name, kind == "private", kind == "plain").values()
    for _ in range(MEMORY_STEPS):
        step()
    return resident("VmHWM") - before


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(own_peak(*arguments.peak))
        return
    print(f"{'network':52s} {'plain':>10s} {'private':>10s} {'ratio':>6s} {'bar':>5s} {'memory':>7s}")
    for name in arguments.models:
        steps = steps_of(name, True, True)
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        for turn in range(WARM_UP + arguments.rounds):
            for kind, step in steps.items():
                start = time.perf_counter()
                step()
                if turn >= WARM_UP:
                    seconds[kind].append(time.perf_counter() - start)
        del steps
        plain, private = (statistics.median(seconds[kind]) for kind in ("plain", "private"))
        memory = peak(name, "private") / peak(name, "plain")
        row = f"{CASES[name].says:52s} {1e3 * plain:7.1f} ms {1e3 * private:7.1f} ms {private / plain:6.2f}"
        print(f"{row} {CASES[name].bar:5.1f} {memory:7.2f}", flush=True)
    print(", ".join(f"{key} {value}" for key, value in versions().items()), f"{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

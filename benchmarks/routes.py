"""What the routes to a layer's norms cost: the tables of the page on speed.

    python -m benchmarks.routes

Norm and weighted sum of one layer's gradients, by Gram matrices and by held gradients, for convolutions streamed as well,
beside the plain weight gradient.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_dp.gradients.contributions import OuterProduct, ProductSum
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight

SHAPES = ((32, 65, 192, 192), (32, 65, 192, 768), (16, 128, 256, 1024), (32, 64, 2304, 256), (16, 128, 256, 8192))
CONVOLUTIONS = ((32, 256, 256, 8), (32, 128, 256, 16), (16, 673, 128, 16))  # units, channels in and out, side; 3 x 3
ROUNDS = 15


def milliseconds(function: Callable[[], object]) -> float:
    """Median over rounds."""
    seconds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def by_route(make: Callable[[], ProductSum], routes: tuple[str, ...], memory: Memory) -> list[float]:
    """Milliseconds of norm and sum on each route."""
    weights = torch.rand(make().num_units)

    def once(route: str) -> None:
        memory.begin(0)
        product = make()
        product.choose_route(memory)
        product.route = route  # type: ignore[assignment]
        product.squared_norms()
        product.weighted_sum(weights)
        memory.end()

    return [milliseconds(lambda route=route: once(route)) for route in routes]  # type: ignore[misc]


def main() -> None:
    """Prints the tables."""
    memory = Memory(1 << 34)
    print("units, T, d, p: Gram, held, plain weight gradient (ms)")
    for units, length, d, p in SHAPES:
        a, b = torch.randn(units, 1, length, d), torch.randn(units, 1, length, p)

        def linear(a: torch.Tensor = a, b: torch.Tensor = b, shape: torch.Size = torch.Size((p, d))) -> ProductSum:  # noqa: B008
            return OuterProduct(a, b, shape)

        plain = milliseconds(lambda a=a, b=b, d=d, p=p: b.reshape(-1, p).t() @ a.reshape(-1, d))
        gram, held = by_route(linear, ("gram", "held"), memory)
        print(f"  {units}, {length}, {d}, {p}: {gram:.1f}, {held:.1f}, {plain:.1f}")
    print("units, channels in, out, side of a 3 x 3 convolution: Gram, held, streamed, plain weight gradient (ms)")
    for units, inputs, outputs, side in CONVOLUTIONS:
        module = nn.Conv2d(inputs, outputs, 3, padding=1)
        geometry, shape = ConvGeometry(module), module.weight.shape
        x, y = torch.randn(units, inputs, side, side), torch.randn(units, outputs, side, side)

        def conv(
            x: torch.Tensor = x, y: torch.Tensor = y, shape: torch.Size = shape, geometry: ConvGeometry = geometry
        ) -> ProductSum:
            return ConvWeight(x.unsqueeze(1), y.unsqueeze(1), shape, geometry)

        plain = milliseconds(lambda g=geometry, x=x, y=y, shape=shape: g.weight_gradient(x, y, shape))
        gram, held, streamed = by_route(conv, ("gram", "held", "streamed"), memory)
        print(f"  {units}, {inputs}, {outputs}, {side}: {gram:.1f}, {held:.1f}, {streamed:.1f}, {plain:.1f}")


if __name__ == "__main__":
    main()

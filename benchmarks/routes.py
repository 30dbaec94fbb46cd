"""What the routes to a layer's norms cost: the table of the page on speed.

    python -m benchmarks.routes

Norm and weighted sum of one linear layer's gradients, by Gram matrices and by held gradients, beside the plain weight gradient.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from lightning_dp.gradients.contributions import OuterProduct
from lightning_dp.gradients.memory import Memory

SHAPES = ((32, 65, 192, 192), (32, 65, 192, 768), (16, 128, 256, 1024), (32, 64, 2304, 256), (16, 128, 256, 8192))
ROUNDS = 15


def milliseconds(function: Callable[[], object]) -> float:
    """Median over rounds."""
    seconds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def main() -> None:
    """Prints the table."""
    memory = Memory(1 << 34)
    print("units, T, d, p: Gram, held, plain weight gradient (ms)")
    for units, length, d, p in SHAPES:
        a, b = torch.randn(units, 1, length, d), torch.randn(units, 1, length, p)
        weights, out = torch.rand(units), torch.zeros(p, d)

        def by(route: str, a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            memory.begin(0)
            product = OuterProduct(a, b, out.shape)  # noqa: B023
            product.choose_route(memory)
            product.route = route  # type: ignore[assignment]
            product.squared_norms()
            product.add_weighted_sum(weights, out)  # noqa: B023
            memory.end()

        plain = milliseconds(lambda a=a, b=b, d=d, p=p: b.reshape(-1, p).t() @ a.reshape(-1, d))
        figures = [milliseconds(lambda route=route, by=by: by(route)) for route in ("gram", "held")]
        print(f"  {units}, {length}, {d}, {p}: {figures[0]:.1f}, {figures[1]:.1f}, {plain:.1f}")


if __name__ == "__main__":
    main()

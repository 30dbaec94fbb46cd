"""What the engine holds once a pass is over."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.gradients import Clipping, GradientEngine
from tests.gradients.oracle import squared_loss


def storages() -> dict[int, int]:
    """Bytes of each storage that a tensor of Python's holds, by address."""
    found = (t.untyped_storage() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("limit", [None, 1 << 12, 1 << 30])
def test_a_pass_leaves_the_sums_and_nothing_that_grows_with_the_batch(limit: int | None) -> None:
    """Held gradients and temporaries would lie under the records of the next forward pass, where a step's memory peaks."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(2), nn.Linear(144, 4))
    x, y = torch.randn(16, 6, 16, 16), torch.randn(16)
    gradients = 4 * sum(p.numel() for p in module.parameters())
    with GradientEngine(
        module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=16, memory_limit=limit
    ) as engine:
        before = storages()
        engine.backward(squared_loss(module, x, y), len(x))
        left = {address: size for address, size in storages().items() if before.get(address) != size}
        assert gradients <= sum(left.values()) <= gradients + 64  # and the tap's anchor

"""The network on silhouettes: its size, the clipped sum against a plain loop, a private run, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import SilhouetteCNN
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients
from tests.strategies.helpers import Tiny, fit, strategy


def small(outputs: int = 3) -> SilhouetteCNN:
    torch.manual_seed(0)
    return SilhouetteCNN(outputs, 2, (32, 48), width=2, hidden=8)


def test_counts() -> None:
    convs = sum(9 * a * b + b + 2 * b for a, b in ((2, 8), (8, 16), (16, 32), (32, 32)))
    linear = (32 * 6 * 4 + 1) * 64 + 65 * 2
    assert sum(p.numel() for p in SilhouetteCNN().parameters()) == convs + linear


def test_clipped_sum_is_that_of_a_plain_loop() -> None:
    net = small().double()
    x, y = torch.rand(4, 2, 32, 48, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)
    gradients = unit_gradients(net, squared_loss, x, y)
    bound = sorted(float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients)[2]
    with GradientEngine(net, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(net, x, y), 4)
        found = engine.clipped_sum()
    assert relative_error(found, clipped_sum(gradients, bound, "flat", layer_numbers(net))) < 1e-5


@pytest.mark.filterwarnings("ignore:batch size:lightning_dp.errors.PrivacyWarning")
def test_private_run() -> None:
    data = TensorDataset(torch.rand(16, 2, 32, 48, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3)
    fit(Tiny(net=small()), strategy(), DataLoader(data, 8, shuffle=True), fast_dev_run=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"size": (90, 64)}, "multiples of 16"), ({"size": (16, 64)}, "from 32 on"), ({"views": 0}, "views=0")],
)
def test_sizes_of_nothing_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PrivacyConfigError, match=words):
        SilhouetteCNN(**arguments)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="1 channels"):
        small()(torch.zeros(2, 1, 32, 48))
    with pytest.raises(PrivacyConfigError, match="size= their sides"):
        small()(torch.zeros(2, 2, 48, 32))

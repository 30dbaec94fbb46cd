"""Networks of timm as they are, at tiny sizes, against the plain loop: the sweep of benchmarks/ in miniature."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dp import PrivacyError, replace_batch_norm
from lightning_dp.gradients import Clipping, GradientEngine, RowMemory
from tests.gradients.oracle import relative_error, squared_loss, unit_gradients

timm = pytest.importorskip("timm")

TINY_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)}
# Name, options, side of the images, and what it brings that the others do not.
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "resnet": ("test_resnet", {}, 32),  # batch normalisation, in-place activations
    "efficientnet": ("test_efficientnet", {}, 32),  # normalisation with activation, squeeze and excitation, depthwise
    "byobnet": ("test_byobnet", {}, 32),
    "convnext": ("test_convnext", {}, 64),  # layer scale, channels-first layer normalisation
    "nfnet": ("test_nfnet", {}, 64),  # weight-standardised convolutions, gains
    "vit": ("test_vit", {"img_size": 32}, 32),  # class token, position embedding
    "vit_relpos": ("test_vit_relpos", {"img_size": 32, "patch_size": 8}, 32),  # bias tables looked up by buffers
    "mambaout": ("test_mambaout", {}, 64),
    "swin": ("swin_tiny_patch4_window7_224", TINY_SWIN, 32),  # windows folded into the batch axis
    "swin_v2": ("swinv2_tiny_window8_256", TINY_SWIN, 32),  # a network on coordinates makes the biases
    "mixer": ("gmlp_ti16_224", {"img_size": 32}, 32),
    "cait": ("cait_xxs24_224", {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}, 32),  # talking heads
    "edgenext": ("edgenext_xx_small", {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}, 64),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, options, size = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = replace_batch_norm(timm.create_model(model, num_classes=4, drop_path_rate=0.0, **options))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():  # zeros and layer scales of 1e-6 would hide what is behind them
        for p in network.parameters():
            if p.numel() == 1 or float(p.std()) < 1e-3:
                p.add_(0.2 * torch.randn_like(p))
    return network.double(), torch.randn(3, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_matches_the_plain_loop(name: str) -> None:
    module, x = build(name)
    y = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    gradients = unit_gradients(module, squared_loss, x, y)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = 0.5 * min(norms)  # every sample is clipped
    truth = [
        sum(bound / n * unit[i] for n, unit in zip(norms, gradients, strict=True)) for i in range(len(gradients[0]))
    ]
    memory = RowMemory()
    for size in (1, 2, 3):  # batches of several sizes tell what the batch shares, as in the strategy's self-check
        found = engine_sum(module, x[:size], y[:size], bound, memory)
    assert relative_error(found, truth) < 1e-5


def engine_sum(module: nn.Module, x: Tensor, y: Tensor, bound: float, memory: RowMemory) -> list[Tensor]:
    options: dict[str, Any] = {"noise_multiplier": 0.0, "expected_batch_size": 1, "row_memory": memory}
    while True:
        read = dict(memory.borrowed)
        try:
            with GradientEngine(module, Clipping(bound), **options) as engine:
                engine.expect(len(x))
                engine.backward(squared_loss(module, x, y), len(x))
                return engine.clipped_sum()
        except PrivacyError:  # a weight that its owner's surroundings read; followed from the next pass on
            if memory.borrowed == read:
                raise

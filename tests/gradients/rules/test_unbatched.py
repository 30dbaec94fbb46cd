"""Layers that also take a single sample, called sample by sample: refused by name, since axis 0 is then no batch axis.

The shapes agree with each other (as many channels as positions as samples), so that a norm over the wrong axis would fit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.models import StandardisedConv2d
from tests.gradients.rules.agreement import unit_losses

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 4), (4,)),
    "linear_of_one": (lambda: nn.Linear(4, 1), (4,)),
    "layer_norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer_norm_of_two_axes": (lambda: nn.LayerNorm((4, 4)), (4, 4)),
    "rms_norm": (lambda: nn.RMSNorm(4), (4,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 4)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3, padding=1), (3, 4, 4, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(3, 4, 3, padding=1), (3, 4)),
    "standardised_conv": (lambda: StandardisedConv2d(3, 4, 3, padding=1), (3, 4, 4)),
    "instance_norm1d": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 4)),
    "instance_norm2d": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 4, 4)),
    "instance_norm3d": (lambda: nn.InstanceNorm3d(4, affine=True), (4, 4, 4, 4)),
}


class OneByOne(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(row) for row in x])


@pytest.mark.parametrize("only", ["weight", "bias", None])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_a_call_without_batch_axis_is_refused_by_name(name: str, size: int, only: str | None) -> None:
    build, shape = LAYERS[name]
    module = OneByOne(build())
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    trained = [p for key, p in module.layer.named_parameters() if only is None or key == only]
    trained = trained or list(module.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        losses = unit_losses(module(torch.randn(size, *shape)), UnitMap(size))
        with pytest.raises(PrivacyError, match=r"layer \(\w+\) (was called without a batch axis|saw 1 rows)"):
            engine.backward(losses.mean(), size)


def test_bilinear_layers_too() -> None:
    layer = nn.Bilinear(4, 4, 4)
    with GradientEngine(layer, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        out = torch.stack([layer(row, torch.tanh(row)) for row in torch.randn(4, 4)])
        with pytest.raises(PrivacyError, match="without a batch axis"):
            engine.backward(out.square().mean(), 4)

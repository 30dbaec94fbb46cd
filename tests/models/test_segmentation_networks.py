"""MoNet and U-Net: shapes, reach, no coupling of samples, and the engine against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_dp import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import RDDC, MoNet, UNet, dice_cross_entropy
from tests.gradients.oracle import relative_error, unit_gradients

NETWORKS: dict[str, Callable[..., nn.Module]] = {"monet": MoNet, "unet": UNet}


def build(name: str, dims: int, out_channels: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """A tiny network without dropout in double precision, with inputs and targets of unlike samples."""
    torch.manual_seed(0)
    network = NETWORKS[name](2, out_channels, dims=dims, filters=4, depth=1)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    sides = (8, 12, 4)[:dims]
    x = torch.randn(3, 2, *sides, dtype=torch.float64)
    target = torch.randint(0, max(out_channels, 2), (3, *sides))
    target[1] = 0  # an empty mask
    return network.double(), x, target


def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return dice_cross_entropy(module(x), y).mean()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_clipped_sum_is_that_of_a_plain_loop(name: str, dims: int) -> None:
    module, x, y = build(name, dims)
    gradients = unit_gradients(module, loss, x, y)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = sorted(norms)[1]  # one is clipped, one is at the bound, one is not
    truth = [
        sum(min(1.0, bound / norm) * unit[k] for norm, unit in zip(norms, gradients, strict=True))
        for k in range(len(gradients[0]))
    ]
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(loss(module, x, y), len(x))
        assert relative_error(engine.clipped_sum(), truth) < 1e-4


@pytest.mark.parametrize("out_channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_does_not_see_the_others(name: str, dims: int, out_channels: int) -> None:
    module, x, _ = build(name, dims, out_channels)
    found = module(x)
    assert found.shape == (3, out_channels, *x.shape[2:])
    assert not any(isinstance(layer, _BatchNorm) for layer in module.modules())
    torch.testing.assert_close(found[:1], module(torch.cat([x[:1], 50 * x[1:]]))[:1])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_rddc_reaches_ten_voxels_and_no_further(dims: int, residual: bool) -> None:
    torch.manual_seed(0)
    dense = RDDC(2, dims, dropout=0.0, residual=residual, norm=lambda channels: nn.Identity()).double()
    for parameter in dense.parameters():
        nn.init.uniform_(parameter, 0.01, 0.05)  # nothing cancels
    side = 25
    x = torch.zeros(1, 2, *[side] * dims, dtype=torch.float64, requires_grad=True)
    out = dense(x)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[(0, 0, *[12] * dims)], x)
    along = gradient[0, 0][(slice(None), *[12] * (dims - 1))].nonzero().flatten()
    assert (int(along.min()), int(along.max())) == (2, 22)


def test_rddc_is_its_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9)
    port, original = RDDC(4, residual=True).eval(), RDDC(4, residual=False).eval()
    original.load_state_dict(port.state_dict())
    c1 = port.first(x)
    c2 = port.second(x + c1)
    c4 = port.fourth(c2 + port.third(c2))
    torch.testing.assert_close(original(x), c4)
    torch.testing.assert_close(port(x), c4 + x)
    assert [layer[0].dilation for layer in (port.first, port.second, port.third, port.fourth)] == [
        (d, d) for d in (4, 3, 2, 1)
    ]
    port.train()
    assert not torch.equal(port(x), port(x))  # dropout


def test_monet_has_the_widths_and_strides_of_its_code() -> None:
    encoder = MoNet().encoder
    assert encoder.widths == (16, 32, 64)
    shapes = [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 16, 16))]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert [down[0].kernel_size for down in encoder.downs] == [(4, 4)] * 2


def test_skips_reach_the_output() -> None:
    network = UNet(1, 1, filters=4, depth=2).eval()
    seen: list[int] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    network(torch.randn(1, 1, 8, 8))
    assert seen == [16, 8]  # twice the width of each level


@pytest.mark.parametrize("name", NETWORKS)
def test_bad_input_is_explained(name: str) -> None:
    network = NETWORKS[name](1, 1, filters=4, depth=2)
    with pytest.raises(ValueError, match=r"multiple of 4.*\(12, 12\)"):
        network(torch.zeros(1, 1, 10, 12))
    with pytest.raises(ValueError, match="in_channels="):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="unsqueeze"):
        network(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="dims="):
        network(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(PrivacyConfigError, match="dims=4"):
        NETWORKS[name](dims=4)
    with pytest.raises(PrivacyConfigError, match="out_channels=0"):
        NETWORKS[name](1, 0)
    with pytest.raises(PrivacyConfigError, match="widths"):
        NETWORKS[name](filters=0)
    with pytest.raises(PrivacyConfigError, match="four numbers"):
        RDDC(4, dilations=(1, 2))

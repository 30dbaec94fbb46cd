"""ScaleNorm: what it normalises, what it does to the variance over depth, and the surgeon that puts it into networks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp import PrivacyConfigError, replace_batch_norm
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import ResidualBlock, ResNet9, ScaleNorm, add_scale_norm, search_groups
from lightning_dp.models.resnet9 import _Residual
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients


def test_groups_are_normalised_at_the_start() -> None:
    torch.manual_seed(0)
    net = ResNet9(width=8, groups=(4, 4, 4, 4))
    found: list[Tensor] = []
    for block in (net.res1, net.res2):
        block.register_forward_hook(lambda *args: found.append(args[2]))
    net(7 * torch.randn(3, 3, 32, 32))
    for out in found:
        groups = out.view(3, 4, -1)
        torch.testing.assert_close(groups.mean(-1), torch.zeros(3, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(groups.var(-1, correction=0), torch.ones(3, 4), atol=1e-2, rtol=0)


@settings(max_examples=20)
@given(channels=st.sampled_from([4, 6, 12]), groups=st.integers(1, 16), factor=st.floats(0.1, 100))
def test_a_common_rescaling_of_both_branches_does_not_show(channels: int, groups: int, factor: float) -> None:
    torch.manual_seed(0)
    norm = ScaleNorm(channels, groups, affine=False)
    total = torch.randn(2, channels, 5, 5)
    torch.testing.assert_close(norm(factor * total), norm(total), rtol=1e-3, atol=1e-3)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= max(1, groups)


def variances(scale_norm: bool, depth: int = 24) -> Tensor:
    """Variance of the stream after each of a stack of residual blocks, at the start of training."""
    torch.manual_seed(0)
    stream, found = torch.randn(8, 32, 8, 8), []
    for _ in range(depth):
        # A branch whose output has variance one: it normalises its input, and its weights keep the variance.
        branch = nn.Sequential(
            nn.GroupNorm(4, 32), nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular", bias=False)
        )
        nn.init.normal_(branch[1].weight, std=(32 * 9) ** -0.5)
        with torch.no_grad():
            stream = _Residual(branch, ScaleNorm(32, 4) if scale_norm else nn.Identity())(stream)
        found.append(stream.var())
    return torch.stack(found)


def test_variance_grows_with_the_depth_without_scale_norm_and_not_with_it() -> None:
    """Each block adds one to the variance: after k blocks it is 1 + k. With ScaleNorm it stays one."""
    depth = torch.arange(1.0, 25)
    torch.testing.assert_close(variances(False), 1 + depth, rtol=0.15, atol=0)
    torch.testing.assert_close(variances(True), torch.ones(24), rtol=1e-3, atol=0)


def norms(model: nn.Module) -> list[ScaleNorm]:
    return [module for module in model.modules() if isinstance(module, ScaleNorm)]


NETWORKS = {
    "torchvision basic": ("torchvision", "resnet18"),
    "torchvision bottleneck": ("torchvision", "resnet50"),
    "timm basic": ("timm", "test_resnet"),
    "timm bottleneck": ("timm", "resnet26"),
    "timm pre-activation": ("timm", "resnetv2_18"),
    "timm pre-activation bottleneck": ("timm", "resnetv2_50"),
    "timm v2 bottleneck": ("timm", "resnetv2_50d_evos"),
}


def build(name: str) -> nn.Module:
    package, model = NETWORKS[name]
    torch.manual_seed(0)
    if package == "torchvision":
        return pytest.importorskip("torchvision").models.get_model(model, num_classes=3)
    return pytest.importorskip("timm").create_model(model, num_classes=3)


@pytest.mark.parametrize("where", ["output", "addition"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_gets_a_norm_of_its_own(name: str, where: str) -> None:
    model = build(name)
    before = sum(p.numel() for p in model.parameters())
    assert add_scale_norm(model, 8, where) is model
    found = norms(model)
    assert len(found) >= 4
    assert len({id(p) for norm in found for p in norm.parameters()}) == 2 * len(found)  # none is shared
    assert sum(p.numel() for p in model.parameters()) - before == sum(2 * norm.num_channels for norm in found)
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_where_a_block_is_normalised(package: str) -> None:
    """Against the block written out: after the last activation, or between the addition and the activation."""
    torch.manual_seed(0)
    if package == "torchvision":
        resnet = pytest.importorskip("torchvision.models.resnet")
        block, last = replace_batch_norm(resnet.BasicBlock(8, 8)), "relu"
    else:
        resnet = pytest.importorskip("timm.models.resnet")
        block, last = replace_batch_norm(resnet.BasicBlock(8, 8)), "act2"
    x, first = torch.randn(2, 8, 6, 6), "relu" if package == "torchvision" else "act1"
    total = x + block.bn2(block.conv2(block.get_submodule(first)(block.bn1(block.conv1(x)))))
    relu, norm = block.get_submodule(last), ScaleNorm(8, 4)
    after = add_scale_norm(copy.deepcopy(block), 4, "output")
    between = add_scale_norm(copy.deepcopy(block), 4, "addition")
    torch.testing.assert_close(after(x.clone()), norm(relu(total.clone())))
    torch.testing.assert_close(between(x.clone()), relu(norm(total.clone())))


@pytest.mark.parametrize("where", ["output", "addition"])
def test_normalised_network_gives_the_gradients_of_a_plain_loop(where: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = add_scale_norm(replace_batch_norm(timm.create_model("test_resnet", num_classes=4)), 4, where).double()
    x, y = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.linspace(-1, 1, 3, dtype=torch.float64)
    gradients = unit_gradients(net, squared_loss, x, y)
    bound = 0.5 * min(float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients)
    with GradientEngine(net, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(net, x, y), 3)
        found = engine.clipped_sum()
    assert relative_error(found, clipped_sum(gradients, bound, "flat", layer_numbers(net))) < 1e-5


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.conv(x))


def test_blocks_of_ones_own() -> None:
    x = torch.randn(2, 4, 5, 5)
    for where in ("output", "addition"):
        torch.manual_seed(0)
        plain = Mine()
        model = add_scale_norm(nn.Sequential(copy.deepcopy(plain)), 2, where, {Mine: ResidualBlock("conv", "last")})
        norm, total = ScaleNorm(4, 2), x + plain.conv(x)
        expected = norm(total.relu()) if where == "output" else norm(total).relu()
        torch.testing.assert_close(model(x), expected)


def test_refusals_change_nothing() -> None:
    model = nn.Sequential(Mine(), nn.Conv2d(4, 4, 3))
    with pytest.raises(PrivacyConfigError, match="found no residual block"):
        add_scale_norm(model)
    with pytest.raises(PrivacyConfigError, match="choose 'output' or 'addition'"):
        add_scale_norm(model, where="before")  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="no convolution 'conv9'"):
        add_scale_norm(model, blocks={Mine: ResidualBlock("conv9")})
    assert norms(model) == []
    block = Mine()
    with pytest.raises(PrivacyConfigError, match="several places"):
        add_scale_norm(nn.Sequential(block, block), blocks={Mine: ResidualBlock("conv")})
    with pytest.raises(PrivacyConfigError, match="already"):
        add_scale_norm(ResNet9(width=4))


def test_search_gives_the_best_number_of_groups() -> None:
    search = search_groups(lambda groups: -abs(groups - 9))
    assert list(search.scores) == [1, 2, 4, 8, 16, 32, 64]
    assert search.best == 8
    with pytest.raises(PrivacyConfigError, match="no number of groups"):
        search_groups(lambda groups: 0.0, ())

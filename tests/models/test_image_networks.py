"""What holds for every network for images: counts, sizes, no coupling of samples, exact private gradients, one private run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import ColourCNN, ResNet9, ScaleNorm, SmoothNet, StandardisedConv2d, WideResNet
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients
from tests.strategies.helpers import Tiny, fit, strategy

# Small ones, with every option that changes the computation.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet9": lambda: ResNet9(4, width=4),
    "resnet9_plain": lambda: ResNet9(4, width=4, scale_norm=False),
    "resnet9_ws": lambda: ResNet9(4, width=4, groups=(1, 2, 4, 8), weight_standardised=True),
    "smoothnet": lambda: SmoothNet(4, width=0.5, depth=2),
    "smoothnet_instance": lambda: SmoothNet(4, width=0.5, depth=2, groups=0),
    "smoothnet_separable": lambda: SmoothNet(4, width=0.5, depth=2, groups=None, separable=True),
    "wrn": lambda: WideResNet(4, depth=10, width=1),
    "wrn_scalenorm": lambda: WideResNet(4, depth=10, width=1, scale_norm=True),
    "cnn": lambda: ColourCNN(4, size=16, width=4),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "make, parameters",
    [
        (lambda: ResNet9(), 2_448_714),
        (lambda: ResNet9(scale_norm=False), 2_447_946),
        (lambda: ResNet9(165), 2_607_589),
        (lambda: SmoothNet(width=8.0, depth=5), 3_391_853),
        (lambda: SmoothNet(width=1.0, depth=1), 101_017),
        (lambda: SmoothNet(width=1.0, depth=1, groups=0), 101_017 - 2 * (8 + 16)),
        (lambda: ColourCNN(), 550_570),
    ],
)
def test_parameters_of_the_published_networks(make: Callable[[], nn.Module], parameters: int) -> None:
    assert count(make()) == parameters


@pytest.mark.parametrize("depth, width", [(10, 1), (16, 4)])
def test_parameters_of_wide_networks_by_hand(depth: int, width: int) -> None:
    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side**2 + outputs  # and the gains

    channels, total = [16, 16 * width, 32 * width, 64 * width], conv(3, 16, 3)
    for stage in range(3):
        for block in range((depth - 4) // 6):
            c, d = channels[stage] if block == 0 else channels[stage + 1], channels[stage + 1]
            total += 2 * c + conv(c, d, 3) + 2 * d + conv(d, d, 3)
            if c != d or (stage and block == 0):
                total += conv(c, d, 1)
    total += 2 * channels[-1] + channels[-1] * 10 + 10
    assert count(WideResNet(depth=depth, width=width)) == total


@settings(max_examples=25)
@given(
    width=st.floats(0.125, 3),
    depth=st.integers(1, 4),
    channels=st.integers(1, 5),
    classes=st.integers(1, 7),
    separable=st.booleans(),
)
def test_smoothnet_counts_its_channels(width: float, depth: int, channels: int, classes: int, separable: bool) -> None:
    """Every convolution sees what the blocks before it and the stack's input have, for any numbers of all."""
    net = SmoothNet(classes, channels, width, depth, separable=separable)
    k, l = int(8 * width), int(16 * width)  # noqa: E741  (growths of the two stacks)

    def stack(inputs: int, growth: int) -> int:
        found = 0
        for block in range(depth):
            seen = inputs + block * growth
            found += (9 * seen + seen * growth if separable else 9 * seen * growth) + 2 * growth
        return found

    between = (channels + depth * k) // 2
    total = stack(channels, k) + (channels + depth * k) * between + stack(between, l)
    total += (16 * l + 1) * 256 + 257 * 128 + 129 * classes
    assert count(net) == total
    assert net(torch.zeros(1, channels, 16, 16)).shape == (1, classes)


def test_instance_norm_is_a_group_for_each_channel_without_weights() -> None:
    torch.manual_seed(0)
    instance, group = SmoothNet(4, width=0.5, depth=2, groups=0), SmoothNet(4, width=0.5, depth=2, groups=1000)
    weights = {k: v for k, v in group.state_dict().items() if k in instance.state_dict()}
    instance.load_state_dict(weights)
    assert [name for name, _ in instance.named_buffers()] == []
    images = torch.randn(3, 3, 16, 16)
    for net in (instance, group):
        net.train()
    torch.testing.assert_close(instance(images), group(images))
    torch.testing.assert_close(instance.eval()(images), group(images))  # no running statistics that would step in


def test_only_the_last_block_of_smoothnet_reaches_the_head() -> None:
    """The stack's other channels take part through it alone."""
    torch.manual_seed(0)
    net = SmoothNet(4, width=0.5, depth=2)
    seen: list[torch.Tensor] = []
    net.pool.register_forward_hook(lambda *args: seen.append(args[1][0]))
    last: list[torch.Tensor] = []
    net.stack1.blocks[-1].register_forward_hook(lambda *args: last.append(args[2]))
    net(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(seen[0], last[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_batch_norm_or_lets_samples_meet(name: str) -> None:
    net = network(name)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    images = torch.randn(4, 3, 16, 16)
    changed = torch.cat([images[:1], 50 * images[1:]])
    torch.testing.assert_close(net(images)[0], net(changed)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "cnn"])
@pytest.mark.parametrize("side", [32, 160])
def test_images_of_any_size(name: str, side: int) -> None:
    with torch.no_grad():
        assert network(name)(torch.zeros(1, 3, side, side)).shape == (1, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_clipped_sum_is_that_of_a_plain_loop(name: str) -> None:
    net = network(name).double()
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)
    gradients = unit_gradients(net, squared_loss, x, y)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = sorted(norms)[2]  # some are clipped, some are not
    with GradientEngine(net, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(net, x, y), 4)
        found = engine.clipped_sum()
    assert relative_error(found, clipped_sum(gradients, bound, "flat", layer_numbers(net))) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:batch size:lightning_dp.errors.PrivacyWarning")
def test_private_run(name: str) -> None:
    """With the self-check, which holds the engine against plain PyTorch again."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 4)
    net = network(name)
    before = [p.clone() for p in net.parameters()]
    fit(Tiny(net=net), strategy(), DataLoader(data, 8, shuffle=True), fast_dev_run=1)
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_images_that_do_not_fit_are_refused_with_the_fix(name: str) -> None:
    net = network(name)
    with pytest.raises(PrivacyConfigError, match=r"1 channels.*in_channels=1"):
        net(torch.zeros(2, 1, 16, 16))
    with pytest.raises(PrivacyConfigError, match=r"takes images \(N, 3, H, W\)"):
        net(torch.zeros(3, 16, 16))
    with pytest.raises(PrivacyConfigError, match="needs at least"):
        net(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResNet9(groups=(32, 32)), "four numbers"),
        (lambda: ResNet9(width=0), "width=0"),
        (lambda: SmoothNet(depth=0), "depth=0"),
        (lambda: SmoothNet(groups=-1), "groups=-1"),
        (lambda: SmoothNet(width=0.1), r"at least 0\.125"),
        (lambda: WideResNet(depth=17), r"6 k \+ 4"),
        (lambda: WideResNet(num_classes=0), "num_classes=0"),
        (lambda: ColourCNN(size=20), "multiple of 8"),
        (lambda: ColourCNN(size=16)(torch.zeros(1, 3, 32, 32)), "made for images of 16 x 16"),
        (lambda: ScaleNorm(8, 0), "at least one group"),
    ],
)
def test_bad_sizes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        make()


def test_standardised_weights_have_no_mean_and_the_variance_of_their_gain() -> None:
    torch.manual_seed(0)
    conv = StandardisedConv2d(3, 5, 3, padding=1, bias=True)
    with torch.no_grad():
        conv.gain.uniform_(0.5, 2)
    delta = torch.zeros(1, 3, 5, 5)  # the kernel, channel by channel, is the response to one pixel
    used = []
    for channel in range(3):
        one = delta.clone()
        one[0, channel, 2, 2] = 1
        used.append((conv(one) - conv(delta))[0, :, 1:4, 1:4])
    weight = torch.stack(used, 1).flatten(1)
    torch.testing.assert_close(weight.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.square().sum(1), conv.gain.detach().flatten() ** 2, rtol=1e-3, atol=0)


def test_timm_knows_the_networks() -> None:
    timm = pytest.importorskip("timm")
    assert count(timm.create_model("smoothnet_w80d50")) == 3_391_853
    assert count(timm.create_model("smoothnet_w10d10")) == 101_017
    assert count(timm.create_model("resnet9_scalenorm", num_classes=165)) == 2_607_589
    assert count(timm.create_model("resnet9_groupnorm")) == 2_447_946
    assert timm.create_model("resnet9_scalenorm", in_chans=1, num_classes=7)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert count(timm.create_model("wrn16_4_groupnorm_ws")) == count(WideResNet(depth=16, width=4))
    for name in ("wrn16_4_scalenorm_ws", "wrn40_4_groupnorm_ws", "wrn40_4_scalenorm_ws"):
        assert timm.is_model(name)
    with pytest.raises(PrivacyConfigError, match="no pretrained weights"):
        timm.create_model("smoothnet_w80d50", pretrained=True)
    with pytest.raises(PrivacyConfigError, match="has no features_only: leave it out"):
        timm.create_model("smoothnet_w10d10", features_only=True)
    with pytest.raises(TypeError, match="nonsense"):
        timm.create_model("smoothnet_w80d50", nonsense=3)


def test_without_timm_nothing_is_registered_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from lightning_dp.models.zoo import register_with_timm

    monkeypatch.setitem(sys.modules, "timm.models", None)
    assert not register_with_timm()

"""The small networks against closed forms and torch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.small import FlatLinear, SlidingMax, TemperedCNN, TemperedSigmoid


@pytest.mark.parametrize(
    "network, message",
    [
        (FlatLinear(16), r"FlatLinear got samples of 48 elements, of shape \(3, 4, 4\).*in_features=48"),
        (GroupNormMLP(16, hidden=8), "GroupNormMLP .*in_features=48"),
        (TanhMLP([16, 4, 2]), r"TanhMLP .*widths\[0\]=48"),
        (TemperedCNN(), r"takes images \(N, 1, 28, 28\) and got \(2, 3, 4, 4\).*ColourCNN"),
    ],
)
def test_samples_of_another_form_are_refused_with_the_fix(network: nn.Module, message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        network(torch.zeros(2, 3, 4, 4))
    if not isinstance(network, TemperedCNN):
        assert network(torch.zeros(0, 3, 4, 4)[:, :1]).shape[0] == 0  # an empty draw has no form to look at


def test_default_tempered_sigmoid_is_tanh() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(TemperedSigmoid()(x), torch.tanh(x))


def test_tempered_sigmoid_is_bounded_by_its_constants() -> None:
    x = torch.tensor([-1e3, 0.0, 1e3], dtype=torch.float64)
    torch.testing.assert_close(
        TemperedSigmoid(1.5, 3.0, 0.25)(x), torch.tensor([-0.25, 0.5, 1.25], dtype=torch.float64)
    )


def test_sliding_max_equals_max_pooling() -> None:
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = SlidingMax()(x), F.max_pool2d(y, 2, 1)
    assert torch.equal(ours, theirs)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_network_of_the_paper_has_26010_parameters() -> None:
    network = TemperedCNN()
    assert sum(parameter.numel() for parameter in network.parameters()) == 26_010
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("group_norm", [False, True])
def test_logits_of_an_image_do_not_depend_on_the_others(group_norm: bool) -> None:
    torch.manual_seed(0)
    network = TemperedCNN(activation=TemperedSigmoid, group_norm=group_norm, shift=0.3, scale=0.35)
    images = torch.rand(4, 1, 28, 28)
    changed = torch.cat([images[:1], 50 * images[1:]])
    torch.testing.assert_close(network(images)[0], network(changed)[0])
    assert group_norm == any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())


def test_pixels_are_shifted_and_scaled() -> None:
    torch.manual_seed(0)
    network = TemperedCNN(shift=0.3, scale=0.5)
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(network(images), network.layers((images - 0.3) * 2))


def test_flat_linear_starts_from_equal_logits_and_learns() -> None:
    head = FlatLinear(12, 3)
    x = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), torch.zeros(5, 3))
    F.cross_entropy(head(x), torch.arange(5) % 3).backward()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.norm() > 0

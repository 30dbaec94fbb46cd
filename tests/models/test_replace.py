"""Batch normalisation replaced: what is carried over, what is dropped, what is left alone, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_dp
from lightning_dp import PrivacyConfigError, replace_batch_norm
from lightning_dp.models.replace import GroupNormAct


def trained(norm: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """As if it had been trained: no parameter and no buffer at its initial value."""
    for tensor in [*norm.parameters(), *norm.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


CASES = [
    (nn.BatchNorm1d, (4, 24)),
    (nn.BatchNorm1d, (4, 24, 5)),
    (nn.BatchNorm2d, (4, 24, 5, 3)),
    (nn.BatchNorm3d, (4, 24, 5, 3, 2)),
    (nn.SyncBatchNorm, (4, 24, 5, 3)),
]


@pytest.mark.parametrize("kind, shape", CASES, ids=lambda v: getattr(v, "__name__", str(v)))
@pytest.mark.parametrize("affine", [True, False])
def test_every_kind_becomes_a_group_norm_with_the_same_affine_map(kind: type, shape: tuple, affine: bool) -> None:
    norm = trained(kind(24, eps=0.1, affine=affine))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight, bias = norm.weight, norm.bias
    new = replace_batch_norm(nn.Sequential(norm))
    assert type(new[0]) is nn.GroupNorm
    assert new[0].weight is weight
    assert new[0].bias is bias
    torch.testing.assert_close(new(x), F.group_norm(x, 6, weight, bias, 0.1))


@pytest.mark.parametrize(
    "channels, groups, expected",
    [(64, None, 16), (128, None, 32), (512, None, 32), (40, None, 10), (37, None, 1), (3, None, 1), (1, None, 1)]
    + [(64, 32, 32), (64, 1000, 64), (48, 32, 24), (37, 32, 1), (10, 4, 2), (8, 1, 1)],
)
def test_groups_are_the_largest_divisor_within_the_limit(channels: int, groups: int | None, expected: int) -> None:
    assert replace_batch_norm(nn.BatchNorm2d(channels), groups).num_groups == expected


def test_default_groups_let_single_values_through() -> None:
    """One position a sample, as after global pooling: what comes out must still depend on what came in."""
    for norm, shape in [(nn.BatchNorm1d(16), (2, 16)), (nn.BatchNorm2d(16), (2, 16, 1, 1))]:
        out = replace_batch_norm(norm)(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        assert out.abs().unique().numel() == out.numel()


def test_model_is_changed_in_place_and_the_root_is_returned() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert replace_batch_norm(model) is model
    root = nn.BatchNorm1d(8)
    new = replace_batch_norm(root)
    assert type(new) is nn.GroupNorm
    assert new.weight is root.weight


def test_names_of_parameters_stay_and_statistics_go() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_batch_norm(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.buffers()) == []
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}


def test_shared_layer_stays_shared_and_modes_and_frozen_weights_stay() -> None:
    norm = nn.BatchNorm2d(8).eval().requires_grad_(False)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.BatchNorm2d(8))})
    replace_batch_norm(model)
    assert model["a"] is model["b"][0]
    assert not model["a"].training
    assert model["b"][1].training
    assert not any(p.requires_grad for p in model["a"].parameters())


def test_samples_no_longer_meet() -> None:
    model = replace_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2)))
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_timm_layer_keeps_its_activation_and_drop() -> None:
    layers = pytest.importorskip("timm.layers")
    norm = trained(layers.BatchNormAct2d(24, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout(0.5)))
    for kind in (norm, layers.convert_sync_batchnorm(copy.deepcopy(norm))):
        new = replace_batch_norm(nn.Sequential(kind))[0].eval()
        assert isinstance(new, GroupNormAct)
        assert isinstance(new.drop, nn.Dropout)
        assert list(new.state_dict()) == ["weight", "bias"]
        x = torch.randn(4, 24, 5, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(new(x), F.silu(F.group_norm(x, 6, norm.weight, norm.bias)))
        new.train()
        assert (new(x) == 0).float().mean() > 0.3


def test_frozen_statistics_are_no_batch_norm() -> None:
    layers = pytest.importorskip("timm.layers")
    model = layers.freeze_batch_norm_2d(nn.Sequential(nn.BatchNorm2d(8)))
    frozen = model[0]
    assert replace_batch_norm(model)[0] is frozen


def test_instance_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(8, track_running_stats=True))
    assert type(replace_batch_norm(model)[0]) is nn.InstanceNorm2d


class Scaled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_subclass_with_its_own_computation_is_refused_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), Scaled(8))
    with pytest.raises(PrivacyConfigError, match=r"1 \(Scaled\)"):
        replace_batch_norm(model)
    assert type(model[0]) is nn.BatchNorm2d
    layers = pytest.importorskip("timm.layers")
    with pytest.raises(PrivacyConfigError, match="SplitBatchNorm2d"):
        replace_batch_norm(layers.convert_splitbn_model(nn.Sequential(nn.BatchNorm2d(8))))


def test_lazy_layer_and_no_groups_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="made-up batch"):
        replace_batch_norm(nn.Sequential(nn.LazyBatchNorm1d()))
    with pytest.raises(PrivacyConfigError, match="at least one group"):
        replace_batch_norm(nn.BatchNorm1d(8), groups=0)


def test_it_is_a_public_name() -> None:
    assert "replace_batch_norm" in lightning_dp.__all__

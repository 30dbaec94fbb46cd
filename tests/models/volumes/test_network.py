"""2.5D networks: slices and views, weights, what is refused; and a volume as one privacy unit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import SliceEncoder, SliceNet
from lightning_dp.models.volumes.slices import check_volumes, cut, fold
from tests.gradients.oracle import clipped_sum, relative_error, squared_loss, unit_gradients

SIZE = (5, 6, 7)
POOLINGS = ["attention", "mean", "max", "lstm", "transformer"]


def volumes(n: int = 3, size: tuple[int, int, int] = SIZE, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(**arguments: object) -> SliceNet:
    torch.manual_seed(0)
    options = {"backbone": SliceEncoder(1, (8, 16)), "backbone_channels": 1, **arguments}
    return SliceNet(**options).double()  # type: ignore[arg-type]


# --- slices ------------------------------------------------------------------------------------------------------


def test_a_slice_is_the_plane_of_its_axis() -> None:
    x = volumes(2, (4, 4, 4))
    (together,) = cut(x, ("z", "x", "y"))
    assert together.shape == (2, 12, 1, 4, 4)
    for i in range(4):
        assert torch.equal(together[:, i], x[:, :, i])
        assert torch.equal(together[:, 4 + i], x[:, :, :, i])
        assert torch.equal(together[:, 8 + i], x[:, :, :, :, i])


def test_the_slices_of_a_volume_are_neighbouring_rows() -> None:
    owner = torch.arange(3.0).reshape(3, 1, 1, 1, 1).expand(3, 1, *SIZE)
    for slices in cut(owner, ("z", "x", "y")):
        rows = fold(slices)[:, 0, 0, 0]
        assert torch.equal(rows, torch.arange(3.0).repeat_interleave(slices.shape[1]))


def test_slices_of_unequal_sides_can_be_brought_to_one_size() -> None:
    assert [s.shape[3:] for s in cut(volumes(), ("z", "x", "y"))] == [(6, 7), (5, 7), (5, 6)]
    (together,) = cut(volumes(), ("z", "x", "y"), (8, 8))
    assert together.shape == (3, 18, 1, 8, 8)


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["all", "z", "x", "y"])
def test_weights_are_shares_of_every_slice_of_the_views(views: str) -> None:
    weights = network(views=views).slice_weights(volumes())
    assert {axis: tuple(w.shape) for axis, w in weights.items()} == {
        axis: (3, length) for axis, length in zip("zxy", SIZE, strict=True) if views in ("all", axis)
    }
    together = torch.cat(list(weights.values()), 1)
    assert bool((together >= 0).all())
    torch.testing.assert_close(together.sum(1), torch.ones(3, dtype=torch.float64))
    heads = torch.cat(list(network(views=views).slice_weights(volumes(), per_head=True).values()), 2)
    torch.testing.assert_close(heads.sum(2), torch.ones(3, 8, dtype=torch.float64))
    torch.testing.assert_close(heads.mean(1), together)


def test_weights_are_those_of_the_forward_pass() -> None:
    """Attention written out: the weights times the projected features give what the forward pass gives."""
    model, x = network(), volumes()
    features, pooling = model.slice_features(x), model.pooling.attention
    values = F.linear(features, pooling.in_proj_weight[32:], pooling.in_proj_bias[32:])
    heads = torch.cat(list(model.slice_weights(x, per_head=True).values()), 2)
    pooled = torch.einsum("nhs,nshd->nhd", heads, values.unflatten(2, (8, 2))).flatten(1)
    torch.testing.assert_close(model(x), model.head(pooling.out_proj(pooled)))


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "transformer"])
def test_the_order_of_slices_does_not_matter(pooling: str) -> None:
    model, x = network(views="z", pooling=pooling), volumes()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(x[:, :, order]), model(x))
    if pooling == "attention":
        torch.testing.assert_close(model.slice_weights(x[:, :, order])["z"], model.slice_weights(x)["z"][:, order])


def test_the_order_of_slices_matters_to_an_lstm() -> None:
    model, x = network(views="z", pooling="lstm"), volumes()
    assert not torch.allclose(model(x.flip(2)), model(x))


def test_weights_of_a_pooling_that_has_none_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="MaxPooling has no slice weights"):
        network(pooling="max").slice_weights(volumes())


# --- backbones ---------------------------------------------------------------------------------------------------


def test_one_channel_is_repeated_as_a_convolution_with_ones_would() -> None:
    model, x = network(backbone=SliceEncoder(3, (8, 16)), backbone_channels=3), volumes()
    ones = F.conv3d(x, torch.ones(3, 1, 1, 1, 1, dtype=torch.float64))
    other = network(backbone=model.backbone, backbone_channels=3, in_channels=3)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), other(ones))
    assert other(volumes(channels=3)).shape == (3, 2)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_of_one_is_a_row_of_a_larger_batch(pooling: str) -> None:
    model, x = network(pooling=pooling), volumes()
    torch.testing.assert_close(model(x[:1]), model(x)[:1])
    torch.testing.assert_close(model(list(x)), model(x))


def test_features_are_projected_where_a_width_is_given() -> None:
    model = network(feature_dim=24)
    assert (model.project.in_features, model.project.out_features, model.head.in_features) == (16, 24, 24)
    assert model(volumes()).shape == (3, 2)


def test_a_network_of_timm_by_its_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = SliceNet("test_resnet", 3, feature_dim=16)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert model(torch.randn(1, 1, 20, 20, 20)).shape == (1, 3)
    kept = SliceNet("test_resnet", 3, feature_dim=16, norm="batch")
    assert any(isinstance(m, nn.BatchNorm2d) for m in kept.modules())
    pretrained = timm.create_model("test_resnet", num_classes=10)  # with a classifier, which is left out
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    loaded = SliceNet("test_resnet", 3, weights=tmp_path / "weights.pt")
    assert torch.equal(loaded.backbone.conv1[0].weight, pretrained.conv1[0].weight)
    torch.save(SliceEncoder().state_dict(), tmp_path / "other.pt")
    with pytest.raises(PrivacyConfigError, match="do not fit the backbone: missing"):
        SliceNet("test_resnet", weights=tmp_path / "other.pt")
    with pytest.raises(PrivacyConfigError, match="is not there"):
        SliceNet("test_resnet", weights=tmp_path / "none.pt")
    with pytest.raises(PrivacyConfigError, match="timm has no backbone"):
        SliceNet("resnet_of_another_planet")


def test_a_vision_transformer_sees_slices_of_its_size() -> None:
    pytest.importorskip("timm")
    timm = __import__("timm")
    vit = timm.create_model("test_vit", img_size=32, num_classes=0)
    model = SliceNet(vit, 2, slice_size=(32, 32))
    assert model(torch.randn(1, 1, *SIZE)).shape == (1, 2)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_volumes_that_do_not_fit_are_refused_with_the_fix() -> None:
    model = network(volume_size=SIZE)
    with pytest.raises(ValueError, match=r"unequal size, \(1, 4, 6, 7\), \(1, 5, 6, 7\).*fit_volume"):
        model([volumes(1)[0], volumes(1, (4, 6, 7))[0]])
    with pytest.raises(ValueError, match=r"size \(5, 6, 8\) .* volume_size=\(5, 6, 7\).*fit_volume"):
        model(volumes(2, (5, 6, 8)))
    with pytest.raises(ValueError, match=r"expected \(N, C, Z, X, Y\).*unsqueeze\(1\)"):
        model(volumes()[:, 0])
    with pytest.raises(ValueError, match="with 3 channels for a network with in_channels=1"):
        model(volumes(channels=3))
    assert check_volumes(volumes(), 1, None).shape == (3, 1, *SIZE)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"in_channels": 2}, "backbone_channels=2"),
        ({"views": "w"}, "choose 'all', 'z', 'x' or 'y'"),
        ({"pooling": "sum"}, "choose 'attention'"),
        ({"num_heads": 7}, "7 heads cannot share 16 features"),
        ({"norm": "instance"}, "choose 'group' or 'batch'"),
        ({"backbone": nn.Flatten()}, "Give features="),
        ({"backbone": SliceEncoder, "wrong": True}, "widths"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, object], match: str) -> None:
    if arguments.pop("wrong", False):
        with pytest.raises(PrivacyConfigError, match=match):
            SliceEncoder(1, (6,))
        return
    with pytest.raises(PrivacyConfigError, match=match):
        network(**arguments)


def test_features_of_another_width_than_said_are_refused() -> None:
    with pytest.raises(ValueError, match=r"returned .* expected \(15, 24\)"):
        network(views="z", features=24)(volumes())


# --- privacy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["all", "z"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_clipped_sum_is_that_of_a_loop_over_volumes(pooling: str, views: str) -> None:
    """Axes of unequal length with all views: the backbone is called once an axis, and the calls of a volume add up."""
    model, x = network(pooling=pooling, views=views), volumes()
    y = torch.linspace(-1, 1, 3, dtype=x.dtype)
    gradients = unit_gradients(model, squared_loss, x, y)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = sorted(norms)[1]  # one volume is within the bound, one on it, one is clipped
    truth = clipped_sum(gradients, bound, "flat", range(len(gradients[0])))
    with GradientEngine(model, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.expect(3)
        engine.backward(squared_loss(model, x, y), 3)
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


def test_one_volume_moves_the_sum_by_no_more_than_the_bound() -> None:
    """Were its slices clipped apart, eighteen of them could move it by eighteen times as much."""
    model, bound = network(), 0.01
    x, y = volumes(), torch.tensor([1e3, 0.0, 1.0], dtype=torch.float64)
    sums = []
    for kept in (slice(0, 3), slice(1, 3)):
        with GradientEngine(model, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
            engine.backward(squared_loss(model, x[kept], y[kept]), len(x[kept]))
            sums.append(torch.cat([p.flatten() for p in engine.clipped_sum()]))
    assert float((sums[0] - sums[1]).norm()) == pytest.approx(bound, rel=1e-6)


def test_slice_rows_of_a_layer_belong_to_their_volume() -> None:
    """A huge volume beside a tiny one: the tiny one's gradient must come out unscaled."""
    model = network()
    x, y = volumes(2), torch.tensor([1e4, 0.0], dtype=torch.float64)
    own = unit_gradients(model, squared_loss, x, y)[1]
    small = 2 * float(torch.cat([g.flatten() for g in own]).norm())
    with GradientEngine(model, Clipping(small), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(model, x, y), 2)
        both = engine.clipped_sum()
        engine.discard()
        engine.backward(squared_loss(model, x[:1], y[:1]), 1)
        alone = engine.clipped_sum()
    assert relative_error([a - b for a, b in zip(both, alone, strict=True)], own) < 1e-5

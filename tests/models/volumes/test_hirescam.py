"""HiResCAM by its definition, its shares of slices, the numbers that compare them, and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models import SliceEncoder, SliceNet, VolumeNet, hirescam
from lightning_dp.models.volumes import plot_slice_weights, slice_mass, slice_ranks, spearman, top_k_overlap


class Linear(nn.Module):
    """Maps, then a sum with known weights: d score / d map is known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(1, 3, 1)
        self.weight = torch.arange(24.0).reshape(2, 3, 2, 2) / 10 - 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", self.backbone(x), self.weight)


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def slice_net() -> SliceNet:
    torch.manual_seed(0)
    return SliceNet(SliceEncoder(1, (8, 16)), 3, backbone_channels=1)


@pytest.mark.parametrize("target", [0, 1, torch.tensor([1, 0, 1])])
def test_map_is_gradient_times_activation(target: int | Tensor) -> None:
    torch.manual_seed(0)
    model, x = Linear(), data(3, 1, 2, 2)
    rows = model.weight[torch.as_tensor(target).expand(3)]
    (found,) = hirescam(model, x, target=target)
    torch.testing.assert_close(found, (rows * model.backbone(x)).sum(1))
    # Of a linear head the map is exact: its elements add up to the score.
    torch.testing.assert_close(found.sum((1, 2)), model(x).gather(1, torch.as_tensor(target).expand(3)[:, None])[:, 0])


def test_the_largest_logit_is_explained_and_nothing_is_left_changed() -> None:
    model, x = slice_net().train(), data(2, 1, 6, 6, 6)
    model.backbone.requires_grad_(False)
    grads = [p.grad for p in model.parameters()]
    (found,) = hirescam(model, x)
    (largest,) = hirescam(model, x, target=model(x).argmax(1))
    torch.testing.assert_close(found, largest)
    assert found.shape == (2 * 18, 2, 2)
    assert model.training
    assert [p.grad for p in model.parameters()] == grads
    assert not model.backbone._forward_hooks


def test_mass_is_shared_by_the_slices_of_all_views() -> None:
    mass = slice_mass(slice_net(), data(2, 1, 5, 6, 7))
    assert {axis: m.shape[1] for axis, m in mass.items()} == {"z": 5, "x": 6, "y": 7}
    torch.testing.assert_close(torch.cat(list(mass.values()), 1).sum(1), torch.ones(2))


def test_mass_of_a_volumetric_map_lies_where_the_map_lies() -> None:
    """A network that sees one corner only: mass along each axis must sit at its beginning."""

    class Corner(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    model = VolumeNet(Corner(), "conv3d")
    x = torch.zeros(1, 1, 6, 6, 6)
    x[0, 0, 1, 2, 3] = 1
    mass = slice_mass(model, x)
    assert [int(mass[axis].argmax()) for axis in "zxy"] == [1, 2, 3]
    assert all(float(m.max()) == pytest.approx(1) for m in mass.values())
    assert all(m.shape == (1, 6) for m in slice_mass(VolumeNet(SliceEncoder()), data(1, 1, 6, 6, 6)).values())


def test_layers_without_maps_are_refused() -> None:
    model = slice_net()
    with pytest.raises(PrivacyConfigError, match="must be a submodule"):
        hirescam(model, data(1, 1, 6, 6, 6), nn.Linear(1, 1))
    with pytest.raises(PrivacyConfigError, match="returned no maps"):
        hirescam(model, data(1, 1, 6, 6, 6), model.head)
    with pytest.raises(PrivacyConfigError, match="logits"):
        hirescam(model.backbone, data(1, 1, 6, 6), model.backbone.blocks)


# --- numbers -----------------------------------------------------------------------------------------------------


def test_ranks_count_from_the_largest_and_ties_count_against() -> None:
    weights = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4], [0.3, 0.3, 0.3]])
    assert slice_ranks(weights, torch.tensor([1, 0, 1])).tolist() == [1, 3, 3]


def test_correlation_of_ranks_is_scipys() -> None:
    one, other = data(5, 12), data(5, 12).flip(0)
    other[:, ::3] = 0.5  # ties
    truth = [spearmanr(a, b).statistic for a, b in zip(one.numpy(), other.numpy(), strict=True)]
    np.testing.assert_allclose(spearman(one, other), truth, atol=1e-6)
    assert bool(spearman(one, torch.ones(5, 12)).isnan().all())


def test_overlap_of_the_largest() -> None:
    one = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    other = torch.tensor([[3.0, 4.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert top_k_overlap(one, other, 2).tolist() == [1.0, 0.0]
    assert top_k_overlap(one, other, 3).tolist() == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(PrivacyConfigError, match="choose from 1 to 4"):
        top_k_overlap(one, other, 5)


def test_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, x = slice_net(), data(1, 1, 6, 6, 6)
    weights = {axis: w[0] for axis, w in model.slice_weights(x).items()}
    mass = {axis: m[0] for axis, m in slice_mass(model, x).items()}
    figure = plot_slice_weights(x[0], weights, {"x": 3}, {"HiResCAM": mass}, "a volume")
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 6
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("lightning_dp.optional.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-dp\[plots\]"):
        plot_slice_weights(data(1, 4, 4, 4), {"z": torch.ones(4)})

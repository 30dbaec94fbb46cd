"""A fixed projection: unit vectors, each of its own sample, the same from run to run."""

from __future__ import annotations

import pytest
import torch

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models import ProjectedLinear, RandomProjection


def test_outputs_are_unit_vectors_of_single_samples_and_repeat() -> None:
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    projection = RandomProjection(12, 5)
    found = projection(x)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(found[2:3], projection(x[2:3]))
    assert torch.equal(found, RandomProjection(12, 5)(x))
    assert not torch.equal(found, RandomProjection(12, 5, seed=1)(x))
    assert not list(projection.parameters())
    assert not projection.state_dict()


def test_distances_are_kept_on_average() -> None:
    """Squared length before normalisation: mean 1, standard error sqrt(2 / (d m)); within 5 of them."""
    weight = RandomProjection(50, 400).weight
    x = torch.nn.functional.normalize(torch.randn(200, 50, generator=torch.Generator().manual_seed(1)))
    squares = (x @ weight.T).square().sum(1)
    assert abs(float(squares.mean()) - 1) < 5 * (2 / 400) ** 0.5


def test_the_classifier_has_a_layer_to_release() -> None:
    network = ProjectedLinear(12, projected=5, out_features=3)
    assert network(torch.randn(4, 3, 4)).shape == (4, 3)
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"head"}
    with pytest.raises(PrivacyConfigError):
        RandomProjection(0, 5)

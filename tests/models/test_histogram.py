"""Contrast histograms of k-space: the bins by hand, one sample at a time, blind to gain and phase; and the network on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_dp import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.gradients.reals import as_real
from lightning_dp.models import ComplexMLP, ContrastHistogram2d, InverseFourier2d, LocalContrast2d, UnitPower
from lightning_dp.models.complex.phantoms import random_phantoms
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients


def test_a_bin_is_a_mean_over_the_object() -> None:
    layer = ContrastHistogram2d(2, 16, windows=(5,), bins=7)
    z = random_phantoms(3, 16, 2, seed=5)
    found = (layer(z) * layer.spread + layer.centre).view(3, 7, 2)
    contrast, weights = LocalContrast2d(5).measured(InverseFourier2d()(UnitPower()(z)))
    for sample in range(3):
        for channel in range(2):
            inside = contrast[sample, 0][weights[sample, channel] > 0]
            for number, centre in enumerate([-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]):
                terms = torch.exp(-0.5 * ((inside.real - centre) / 0.2) ** 2) * torch.exp(5j * inside.imag)
                wanted = terms.sum() / max(len(inside), 1)
                torch.testing.assert_close(found[sample, number, channel], wanted, rtol=1e-4, atol=1e-5)


def test_bins_are_scaled_by_phantoms_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = ContrastHistogram2d(2, 32)
    torch.manual_seed(1)
    again = ContrastHistogram2d(2, 32)
    assert torch.equal(layer.centre, again.centre)  # a constant: no data, and not the process's random stream
    assert torch.equal(layer.spread, again.spread)
    assert layer.features == layer(random_phantoms(1, 32, 2, seed=7)).shape[1] == 144
    assert not list(layer.parameters())
    typical = layer(random_phantoms(200, 32, 2, seed=3)).abs().square().mean().sqrt()
    assert 0.7 < float(typical) < 1.4


def test_no_scan_sees_another_nor_its_own_gain_or_global_phase() -> None:
    layer, z = ContrastHistogram2d(2, 16), random_phantoms(4, 16, 2, seed=9)
    found = layer(z)
    torch.testing.assert_close(layer(z[2:3]), found[2:3])
    torch.testing.assert_close(layer(z * (3 - 4j)), found, rtol=1e-3, atol=1e-3)
    empty = layer(torch.zeros(1, 2, 16, 16, dtype=torch.complex64))
    assert bool(torch.isfinite(as_real(empty)).all())


def test_clipped_sum_of_the_network_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(2)
    module, z, y = ComplexMLP(10, 6, 3), torch.randn(5, 10, dtype=torch.complex64), torch.linspace(-1, 1, 5)
    gradients = unit_gradients(module, squared_loss, z, y)
    bound = float(torch.tensor([torch.cat([as_real(g).flatten() for g in unit]).norm() for unit in gradients]).median())
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, z, y), len(z))
        assert relative_error(engine.clipped_sum(), truth) < 1e-4


def test_bad_input_is_named() -> None:
    with pytest.raises(PrivacyConfigError, match="at least two bins"):
        ContrastHistogram2d(bins=1)
    with pytest.raises(PrivacyConfigError, match="odd"):
        ContrastHistogram2d(size=16, windows=(4,))
    layer = ContrastHistogram2d(2, 16)
    for wrong in (torch.zeros(1, 3, 16, 16, dtype=torch.complex64), torch.zeros(1, 2, 16, 16)):
        with pytest.raises(PrivacyConfigError, match="coils=2, size=16"):
            layer(wrong)
    assert isinstance(ComplexMLP(4), nn.Module)

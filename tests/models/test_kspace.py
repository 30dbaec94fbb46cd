"""The fixed front of a k-space network: equal to numpy, unitary, blind to gain, coils and phases; and private behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_dp import PrivacyConfigError
from lightning_dp.data.mri import coil_maps, phase_maps
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.gradients.reals import as_real
from lightning_dp.models import InverseFourier2d, KSpaceNet, LocalContrast2d, UnitPower
from lightning_dp.models.complex.phantoms import random_phantoms
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients

C64, C128 = torch.complex64, torch.complex128


@pytest.mark.parametrize("size", [(8, 8), (7, 6), (5, 9)])
def test_the_inverse_transform_is_numpys_and_unitary(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 2, *size, dtype=C128)
    axes = (-2, -1)
    truth = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(z.numpy(), axes), norm="ortho"), axes)
    layer = InverseFourier2d()
    np.testing.assert_allclose(layer(z).numpy(), truth, atol=1e-12)
    torch.testing.assert_close(layer(z).abs().square().sum((2, 3)), z.abs().square().sum((2, 3)))
    # A matrix U with U U^H = I, written out over the positions of one image.
    n = size[0] * size[1]
    matrix = layer(torch.eye(n, dtype=C128).view(n, *size)).reshape(n, n)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(n, dtype=C128))
    assert not list(layer.parameters())


def test_the_inverse_transform_on_real_parts_is_a_real_orthogonal_map() -> None:
    """Its real twin: ``[[A, -B], [B, A]]`` on real and imaginary parts."""
    torch.manual_seed(1)
    layer = InverseFourier2d()
    matrix = layer(torch.eye(30, dtype=C128).view(30, 5, 6)).reshape(30, 30).mT
    a, b = matrix.real, matrix.imag
    twin = torch.cat([torch.cat([a, -b], 1), torch.cat([b, a], 1)])
    z = torch.randn(4, 30, dtype=C128)
    found = layer(z.view(4, 5, 6)).reshape(4, 30)
    torch.testing.assert_close(torch.cat([z.real, z.imag], 1) @ twin.mT, torch.cat([found.real, found.imag], 1))
    torch.testing.assert_close(twin @ twin.mT, torch.eye(60, dtype=torch.float64))


def test_unit_power_is_blind_to_gain_and_to_the_other_samples() -> None:
    torch.manual_seed(2)
    z = torch.randn(4, 2, 5, 6, dtype=C64)
    layer = UnitPower()
    torch.testing.assert_close(layer(z).abs().square().mean((1, 2, 3)), torch.ones(4))
    gain = torch.tensor([0.01, 1.0, 7.0, 1e4]).view(4, 1, 1, 1)
    torch.testing.assert_close(layer(z * gain), layer(z))
    torch.testing.assert_close(layer(z)[2:3], layer(z[2:3]))
    torch.testing.assert_close(layer(z * 1j), layer(z) * 1j)
    assert torch.equal(layer(torch.zeros(1, 2, 3, 3, dtype=C64)), torch.zeros(1, 2, 3, 3, dtype=C64))
    torch.testing.assert_close(layer(z.real).square().mean((1, 2, 3)), torch.ones(4))


# --- local contrast ---------------------------------------------------------------------------------------------------


def disc(n: int = 40) -> tuple[Tensor, Tensor]:
    """A disc with a chequerboard of two tissues: its image, and where it is."""
    line = torch.linspace(-1, 1, n)
    y, x = torch.meshgrid(line, line, indexing="ij")
    inside = (x.square() + y.square() < 0.6).float()
    board = 1 + 0.2 * ((torch.arange(n) // 2)[:, None] + torch.arange(n) // 2).remainder(2).float()
    return (inside * board)[None, None], inside


def test_contrast_does_not_see_gain_coils_and_phases() -> None:
    generator = torch.Generator().manual_seed(3)
    image, _ = disc()
    layer = LocalContrast2d()
    plain = layer(image.to(C64))[0, 0]
    shaded = 30.0 * image * phase_maps(1, 40, generator).unsqueeze(1) * coil_maps(1, 2, 40, generator)
    found = layer(shaded)[0, 0]
    middle = (slice(12, 28), slice(12, 28))
    assert float(plain[middle].abs().mean()) > 0.1
    assert float((found.real - plain.real)[middle].abs().mean()) < 0.15 * float(plain[middle].abs().mean())
    # The shading alone would swamp it.
    raw = shaded.abs().square().sum(1).sqrt()[0][middle]
    assert float(raw.std() / raw.mean()) > float(image[0, 0][middle].std() / image[0, 0][middle].mean())
    global_phase = torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    torch.testing.assert_close(layer(shaded * global_phase), layer(shaded), rtol=1e-3, atol=1e-4)


def test_contrast_is_the_relative_deviation_from_the_window_and_zero_outside() -> None:
    image, inside = disc()
    layer = LocalContrast2d(size=5, gain=1.0)
    found = layer(image.to(C64))[0]
    y, x = 20, 19
    window = image[0, 0, y - 2 : y + 3, x - 2 : x + 3]
    for channel, share in zip(found, (inside.mean(), None), strict=True):
        if share is None:
            share = (channel != 0).float().mean()
        assert float(channel[y, x].real) == pytest.approx(
            float((image[0, 0, y, x] / window.mean() - 1) / share), rel=2e-2
        )
    assert bool((found[:, inside == 0] == 0).all())
    assert int((found[1] != 0).sum()) < int((found[0] != 0).sum())
    flat = layer(inside[None, None].to(C64))[0]
    assert float(flat.abs().max()) < 1e-4  # no edge is a contrast
    assert bool(torch.isfinite(as_real(layer(torch.zeros(1, 2, 9, 9, dtype=C64)))).all())
    assert not list(layer.parameters())


def test_no_sample_sees_another() -> None:
    torch.manual_seed(4)
    z = torch.randn(4, 2, 12, 12, dtype=C64)
    net = small(4).front
    torch.testing.assert_close(net(z)[1:2], net(z[1:2]))


def small(classes: int, **options: Any) -> KSpaceNet:
    """With a head that is not zero, so that gradients reach everything."""
    module = KSpaceNet(2, classes, size=16, **options)
    nn.init.normal_(module.head.weight)
    return module


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", ["complex", "real"])
@pytest.mark.parametrize("front", ["contrast", "image", "kspace"])
def test_clipped_sum_behind_the_fixed_front_is_that_of_a_plain_loop(front: Any, numbers: Any) -> None:
    torch.manual_seed(5)
    module = small(3, widths=(4, 5), front=front, numbers=numbers)
    z, y = torch.randn(5, 2, 12, 12, dtype=C64), torch.linspace(-1, 1, 5)
    gradients = unit_gradients(module, squared_loss, z, y)
    bound = float(torch.tensor([torch.cat([as_real(g).flatten() for g in unit]).norm() for unit in gradients]).median())
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, z, y), len(z))
        assert relative_error(engine.clipped_sum(), truth) < 1e-4


def test_the_network_does_not_see_gain_or_a_global_phase() -> None:
    torch.manual_seed(6)
    module, z = small(4), torch.randn(3, 2, 16, 16, dtype=C64)
    torch.testing.assert_close(module(z * (3 - 4j)), module(z), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KSpaceNet(front="fourier"), "contrast, image, kspace"),  # type: ignore[arg-type]
        (lambda: KSpaceNet(numbers="quaternion"), "complex, real"),  # type: ignore[arg-type]
        (lambda: KSpaceNet(widths=(8,)), "one of each"),
        (lambda: KSpaceNet(widths=(), kernels=(), strides=()), "at least one"),
        (lambda: small(4)(torch.randn(1, 3, 8, 8, dtype=C64)), "coils along axis 1"),
        (lambda: small(4)(torch.randn(1, 2, 8, 8)), "complex k-space"),
        (lambda: InverseFourier2d()(torch.randn(1, 2, 8, 8)), "view_as_complex"),
        (lambda: random_phantoms(2, 7, 1), "8 x 8"),
        (lambda: LocalContrast2d(size=4), "odd"),
        (lambda: LocalContrast2d()(torch.randn(1, 2, 8, 8)), "complex images"),
    ],
)
def test_bad_input_is_named(make: Any, message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        make()


def test_phantoms_are_random_objects_of_their_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, other = random_phantoms(4, 16, 2), random_phantoms(4, 16, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, other)
    assert not torch.equal(one, random_phantoms(4, 16, 2, seed=1))
    image = InverseFourier2d()(one).abs()
    assert float(image[:, :, 6:10, 6:10].mean()) > 5 * float(image[:, :, :2, :2].mean())  # an object in the middle


def test_features_start_centred_on_phantoms_and_what_does_it_is_fixed() -> None:
    torch.manual_seed(7)
    module = small(4)
    found = (module._means(random_phantoms(256, 16, 2)) - module.centre) / module.spread
    torch.testing.assert_close(found.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(16), atol=1e-3, rtol=0)
    assert {name for name, _ in module.named_buffers()} == {"centre", "spread"}
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"features", "head"}

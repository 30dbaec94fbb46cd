"""The scattering transform against a plain loop with dense circular convolutions in numpy, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.scattering import ScatteringTransform, morlet_filter_bank


def _gabor(side: int, sigma: float, slant: float, theta: float, xi: float) -> np.ndarray:
    """Gabor function summed over the copies of each pixel on the torus, written with the rotated quadratic form."""
    grid = np.arange(-3 * side, 4 * side)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    form = rotation @ np.diag([1.0, slant**2]) @ rotation.T / (2 * sigma**2)
    exponent = -(form[0, 0] * x**2 + (form[0, 1] + form[1, 0]) * x * y + form[1, 1] * y**2)
    wave = np.exp(exponent + 1j * xi * (x * np.cos(theta) + y * np.sin(theta)))
    return wave.reshape(7, side, 7, side).sum((0, 2)) * slant / (2 * np.pi * sigma**2)


def _bank(side: int, scales: int, angles: int) -> tuple[np.ndarray, np.ndarray]:
    """Filters in space; the wavelets carry the one common factor that makes the frame bound 1."""
    phi = _gabor(side, 0.8 * 2 ** (scales - 1), 1.0, 0.0, 0.0).real
    phi /= phi.sum()
    psi = np.empty((scales, angles, side, side), dtype=complex)
    for j in range(scales):
        for angle in range(angles):
            shape = (side, 0.8 * 2**j, 4 / angles, np.pi * angle / angles)
            wave, envelope = _gabor(*shape, 0.75 * np.pi / 2**j), _gabor(*shape, 0.0)
            psi[j, angle] = wave - envelope * wave.sum() / envelope.sum()
    power = (np.abs(np.fft.fft2(psi)) ** 2).sum((0, 1))
    mirrored = np.roll(power[::-1, ::-1], (1, 1), (0, 1))
    energy = (power + mirrored) / 2
    room = 1 - np.abs(np.fft.fft2(phi)) ** 2
    carried = energy > 1e-6 * energy.max()
    return phi, psi * np.sqrt(np.min(room[carried] / energy[carried]))


def _convolved(field: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Circular convolution as a sum over shifts."""
    result = np.zeros(field.shape, dtype=complex)
    for dy in range(field.shape[0]):
        for dx in range(field.shape[1]):
            result += kernel[dy, dx] * np.roll(field, (dy, dx), (0, 1))
    return result


def _thinned(field: np.ndarray, stride: int) -> np.ndarray:
    """The field with every ``stride``-th pixel kept, at the weight of the pixels it stands for; the others are zero."""
    comb = np.zeros(field.shape)
    comb[::stride, ::stride] = stride**2
    return comb * field


def _plain(image: np.ndarray, scales: int, angles: int) -> np.ndarray:
    """All paths of one image, every convolution on the full grid."""
    step = 2**scales
    padded = np.pad(image, step, mode="reflect")
    phi, psi = _bank(len(padded), scales, angles)

    def read_off(field: np.ndarray) -> np.ndarray:
        low = _convolved(field, phi).real
        return low[step : step + len(image) : step, step : step + len(image) : step]

    orders: list[list[np.ndarray]] = [[read_off(padded)], [], []]
    for j1 in range(scales):
        for angle1 in range(angles):
            first = _thinned(np.abs(_convolved(padded, psi[j1, angle1])), 2**j1)
            orders[1].append(read_off(first))
            for j2 in range(j1 + 1, scales):
                for angle2 in range(angles):
                    second = np.abs(_convolved(first, psi[j2, angle2]))
                    orders[2].append(read_off(_thinned(second, 2**j2)))
    return np.array(orders[0] + orders[1] + orders[2])


def _images(n: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("side", "scales", "angles"), [(8, 1, 4), (12, 2, 2), (16, 2, 3), (16, 3, 2)])
def test_equals_the_plain_loop(side: int, scales: int, angles: int) -> None:
    image = _images(1, side)
    features = ScatteringTransform((side, side), scales, angles)(image)[0].numpy()
    truth = _plain(image[0, 0].numpy().astype(np.float64), scales, angles)
    assert features.shape == truth.shape
    np.testing.assert_allclose(features, truth, atol=2e-6, rtol=2e-5)


def test_shape_of_the_paper() -> None:
    transform = ScatteringTransform((28, 28), scales=2, angles=8)
    assert transform(_images(2, 28)).shape == (2, 81, 7, 7) == (2, *transform.output_shape())
    assert transform(_images(2, 28).expand(2, 3, 28, 28)).shape == (2, 243, 7, 7)
    assert transform(torch.empty(0, 1, 28, 28)).shape == (0, 81, 7, 7)


def test_has_nothing_to_train_and_nothing_to_save() -> None:
    transform = ScatteringTransform()
    assert not list(transform.parameters())
    assert not transform.state_dict()
    before = {name: buffer.clone() for name, buffer in transform.named_buffers()}
    transform.train()(_images(3, 28))
    assert all(torch.equal(before[name], buffer) for name, buffer in transform.named_buffers())


@pytest.mark.parametrize("groups", [None, 27, 81])
def test_features_of_an_image_do_not_depend_on_the_others(groups: int | None) -> None:
    """The property that makes the features private: change, add or remove other images, the bits stay."""
    transform = ScatteringTransform(normalisation_groups=groups, chunk_size=4)
    images = _images(6, 28)
    changed = images.clone()
    changed[1:] = 1e3 * _images(5, 28, seed=1)
    features = transform(images)
    assert torch.equal(features[0], transform(changed)[0])
    torch.testing.assert_close(transform(images[:1])[0], features[0], rtol=1e-4, atol=1e-4)


def test_normalisation_is_within_an_image() -> None:
    raw = ScatteringTransform()(_images(3, 28)).view(3, 27, -1)
    features = ScatteringTransform(normalisation_groups=27)(_images(3, 28)).view(3, 27, -1)
    spread = (raw.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(features, (raw - raw.mean(-1, keepdim=True)) / spread, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_frame_bound_is_one(scales: int) -> None:
    phi, psi = morlet_filter_bank((40, 32), scales, 6)
    frequencies = (
        torch.stack(torch.meshgrid(torch.arange(40), torch.arange(32), indexing="ij"), -1).view(-1, 2).tolist()
    )
    energy = torch.tensor(
        [
            phi[y, x] ** 2 + 0.5 * (psi[:, :, y, x].square().sum() + psi[:, :, -y % 40, -x % 32].square().sum())
            for y, x in frequencies
        ]
    )
    assert energy.max() == pytest.approx(1.0, abs=1e-6)
    assert energy.min() > 0
    assert psi[:, :, 0, 0].abs().max() < 1e-12  # wavelets have zero mean


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_is_non_expansive(scales: int) -> None:
    transform = ScatteringTransform((32, 32), scales)
    x, y = _images(20, 32), _images(20, 32, seed=1)
    x[10:] = y[10:] + 1e-3 * x[10:]  # near pairs as well as far ones
    pad = torch.nn.ReflectionPad2d(2**scales)
    moved = (transform(x) - transform(y)).flatten(1).norm(dim=1)
    assert (moved <= (pad(x) - pad(y)).flatten(1).norm(dim=1)).all()
    assert (transform(x).flatten(1).norm(dim=1) <= pad(x).flatten(1).norm(dim=1)).all()


def test_small_translations_change_little() -> None:
    """One pixel moves a fine grating's pixels by more than its norm, its coefficients by a few per cent."""
    grating = torch.sin(0.75 * torch.pi * torch.arange(64.0)).expand(1, 1, 64, 64)
    transform = ScatteringTransform((64, 64))
    moved = torch.roll(grating, 1, -1)
    inner = (..., slice(2, -2), slice(2, -2))  # away from the mirrored border
    before, after = transform(grating)[inner], transform(moved)[inner]
    assert (grating - moved).norm() > grating.norm()
    assert (before - after).norm() < 0.05 * before.norm()


def test_translation_by_the_grid_step_translates_the_features() -> None:
    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 24:40] = _images(1, 16)
    transform = ScatteringTransform((64, 64))
    torch.testing.assert_close(
        transform(torch.roll(image, (4, -8), (-2, -1))),
        torch.roll(transform(image), (1, -2), (-2, -1)),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (30, 28)}, "multiples of 4"),
        ({"size": (4, 4)}, "larger than it"),
        ({"scales": 0}, "at least 1"),
        ({"normalisation_groups": 26}, "does not divide the 81 channels"),
    ],
)
def test_refuses_what_does_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        ScatteringTransform(**arguments)  # type: ignore[arg-type]


def test_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"Expected images of shape \(N, C, 28, 28\)"):
        ScatteringTransform()(torch.zeros(2, 1, 32, 32))

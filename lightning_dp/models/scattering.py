"""A fixed wavelet scattering transform: hand-made image features that cost no privacy.

Source: Mallat, "Group Invariant Scattering" (2012); Bruna & Mallat, "Invariant Scattering Convolution Networks"
(2013, sections 2 and 3.1); Oyallon & Mallat (2015). Used under differential privacy by Tramer & Boneh,
"Differentially Private Learning Needs Better Features (or Much More Data)" (ICLR 2021, arXiv 2011.11660).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError

__all__ = ("ScatteringTransform", "morlet_filter_bank")


def _gabor(size: tuple[int, int], sigma: float, slant: float, theta: float, xi: float) -> Tensor:
    """Gabor function ``exp(-u'A u / (2 sigma^2)) exp(i xi <e_theta, u>)`` on the torus, complex128 ``size``."""
    height, width = size
    cos, sin = math.cos(theta), math.sin(theta)
    total = torch.zeros(size, dtype=torch.complex128)
    for shift_y in range(-2, 3):
        for shift_x in range(-2, 3):
            y = (torch.arange(height, dtype=torch.float64) + shift_y * height)[:, None]
            x = (torch.arange(width, dtype=torch.float64) + shift_x * width)[None, :]
            along, across = cos * x + sin * y, -sin * x + cos * y
            envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
            total += torch.polar(envelope, xi * along)
    return total * (slant / (2 * math.pi * sigma**2))


def morlet_filter_bank(size: tuple[int, int], scales: int, angles: int) -> tuple[Tensor, Tensor]:
    """Fourier transforms of the low pass and of the Morlet wavelets, on a torus of ``size`` pixels.

    Scale ``j`` has width ``0.8 * 2^j`` and centre frequency ``0.75 pi / 2^j``; a constant multiple of its envelope is
    subtracted so that each wavelet has exactly zero mean. The wavelets are then scaled by one common factor so that

        |phi(w)|^2 + 1/2 sum_(j, theta) (|psi(w)|^2 + |psi(-w)|^2) <= 1   at every frequency w,

    which is what makes every layer of the transform non-expansive (Bruna & Mallat 2013, eq. 7).

    Args:
        size: Height and width in pixels.
        scales: Number of octaves J.
        angles: Number of orientations L, spread over half a turn.

    Returns:
        ``phi`` float64 ``(H, W)`` and ``psi`` float64 ``(J, L, H, W)``: both are real in Fourier space.
    """
    phi = torch.fft.fft2(_gabor(size, 0.8 * 2 ** (scales - 1), 1.0, 0.0, 0.0)).real
    phi = phi / phi[0, 0]
    wavelets = []
    for j in range(scales):
        for angle in range(angles):
            sigma, slant, theta = 0.8 * 2**j, 4.0 / angles, math.pi * angle / angles
            wave = _gabor(size, sigma, slant, theta, 0.75 * math.pi / 2**j)
            envelope = _gabor(size, sigma, slant, theta, 0.0)
            wavelets.append(torch.fft.fft2(wave - envelope * (wave.sum() / envelope.sum())).real)
    psi = torch.stack(wavelets).view(scales, angles, *size)
    power = (psi**2).sum((0, 1))
    mirrored = torch.roll(power.flip((0, 1)), (1, 1), (0, 1))
    energy = (power + mirrored) / 2
    carried = energy > 1e-6 * energy.max()  # where there is next to no wavelet, the low pass alone decides (<= 1)
    factor = ((1 - phi**2).clamp_min(0)[carried] / energy[carried]).min().sqrt()
    return phi, psi * factor


def _low_pass_matrix(side: int, scales: int, resolution: int) -> Tensor:
    """The low pass along one axis as a matrix, ``(side / 2^J - 2, side / 2^resolution)`` float64.

    The Gaussian ``phi`` is separable, so low pass, read-off every ``2^J`` pixels and removal of the mirrored border are
    one matrix product on each side. The field it acts on holds every ``2^resolution``-th pixel, hence the weight.
    """
    centred = torch.arange(side, dtype=torch.float64)[:, None] + side * torch.arange(-2, 3, dtype=torch.float64)
    gauss = torch.exp(-(centred**2) / (2 * (0.8 * 2 ** (scales - 1)) ** 2)).sum(1)
    gauss = gauss / gauss.sum()
    step, stride = 2**scales, 2**resolution
    outputs = step * torch.arange(1, side // step - 1)
    inputs = stride * torch.arange(side // stride)
    matrix: Tensor = gauss[(outputs[:, None] - inputs[None, :]) % side] * stride
    return matrix


def _fold(spectrum: Tensor, factor: int) -> Tensor:
    """Spectrum of the filter on a grid coarser by ``factor``: the sum of its aliases, ``(..., H/f, W/f)``."""
    height, width = spectrum.shape[-2] // factor, spectrum.shape[-1] // factor
    blocks = spectrum.reshape(*spectrum.shape[:-2], factor, height, factor, width)
    folded: Tensor = blocks.sum((-4, -2))
    return folded


class ScatteringTransform(nn.Module):
    """Second-order scattering coefficients of an image: averaged moduli of wavelet transforms.

    Order 0 is ``x * phi``, order 1 ``|x * psi_1| * phi``, order 2 ``||x * psi_1| * psi_2| * phi`` with ``psi_2`` one of
    the coarser octaves. Every channel is read off on a grid of step ``2^J``. For ``J = 2, L = 8`` a ``28 x 28`` image
    gives ``1 + 16 + 64 = 81`` channels of ``7 x 7``. A modulus at scale ``j`` is kept at
    every ``2^j``-th pixel.

    **Why it costs no privacy.** The module has no parameter and no statistic of any data set: the filters are a
    closed formula. Its output for an image depends on that image alone, so a mechanism that is private in the images
    is, with these features, private in the images with the same eps, and precomputing the features releases nothing.
    The optional normalisation keeps this: it uses the mean and variance of *one* image's channels, never of a batch or
    of a data set (those would be unaccounted statistics).

    Args:
        size: Height and width of the images in pixels; multiples of ``2^scales``, larger than ``2^scales``.
        scales: Number of octaves J.
        angles: Number of orientations L.
        normalisation_groups: ``None``, or the number of groups of channels that are brought to mean 0 and variance 1
            within each image (GroupNorm without an affine map; Tramer & Boneh, section 3.2, take 27 groups for 81).
        chunk_size: Images transformed at a time; bounds the memory, changes nothing else.

    Shape:
        Input ``(N, C, H, W)`` real, output ``(N, C * K, H / 2^J, W / 2^J)`` float32 with
        ``K = 1 + J L + L^2 J (J - 1) / 2``. Channels of one input channel are neighbours: order 0, then per (scale,
        angle) in order 1, then order 2 by (scale 1, angle 1, scale 2, angle 2).

    Guarantee:
        ``||S(x) - S(y)|| <= ||pad(x) - pad(y)||`` without normalisation, where ``pad`` mirrors ``2^J`` pixels at each
        edge.

    Raises:
        PrivacyConfigError: at construction, for sizes, scales or groups that do not fit together.
    """

    psi: Tensor

    def __init__(
        self,
        size: tuple[int, int] = (28, 28),
        scales: int = 2,
        angles: int = 8,
        normalisation_groups: int | None = None,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        step = 2**scales
        if scales < 1 or angles < 1 or chunk_size < 1:
            raise PrivacyConfigError(
                f"scales, angles and chunk_size must be at least 1, got {scales}, {angles} and {chunk_size}."
            )
        if any(side % step or side <= step for side in size):
            raise PrivacyConfigError(
                f"An image of {size[0]} x {size[1]} cannot be read off every 2^scales = {step} pixels: "
                f"both sides must be multiples of {step} and larger than it. Pad the images, or use fewer scales."
            )
        self.size, self.scales, self.angles = size, scales, angles
        self.channels_per_input = 1 + scales * angles + angles**2 * scales * (scales - 1) // 2
        if normalisation_groups is not None and (
            normalisation_groups < 1 or self.channels_per_input % normalisation_groups
        ):
            raise PrivacyConfigError(
                f"normalisation_groups = {normalisation_groups} does not divide the {self.channels_per_input} channels "
                f"of the transform; use a divisor, such as {self.channels_per_input}, or None."
            )
        self.normalisation_groups = normalisation_groups
        padded = (size[0] + 2 * step, size[1] + 2 * step)
        self.chunk_size = chunk_size
        self.register_buffer("psi", morlet_filter_bank(padded, scales, angles)[1].float(), persistent=False)
        for resolution in range(scales):
            for name, side in zip(("rows", "columns"), padded, strict=True):
                matrix = _low_pass_matrix(side, scales, resolution).float()
                self.register_buffer(f"{name}_{resolution}", matrix, persistent=False)

    def output_shape(self, in_channels: int = 1) -> tuple[int, int, int]:
        """Channels, height and width of the features of one image with ``in_channels`` channels."""
        step = 2**self.scales
        return in_channels * self.channels_per_input, self.size[0] // step, self.size[1] // step

    def _modulus(self, spectrum: Tensor, filters: Tensor, factor: int) -> Tensor:
        """Modulus of the circular convolutions, read off every ``factor`` pixels: real ``(..., K, H / f, W / f)``."""
        folded = _fold(spectrum.unsqueeze(-3) * filters, factor) / factor**2
        modulus: Tensor = torch.fft.ifft2(folded).abs()
        return modulus

    def _averaged(self, field: Tensor, resolution: int) -> Tensor:
        """Low pass of a field given every ``2^resolution`` pixels, read off on the output grid: ``(..., h, w)``."""
        rows, columns = getattr(self, f"rows_{resolution}"), getattr(self, f"columns_{resolution}")
        averaged: Tensor = rows @ field @ columns.T
        return averaged

    def _coefficients(self, images: Tensor) -> Tensor:
        """Coefficients before normalisation, ``(N, C, K, h, w)``."""
        padded = F.pad(images, (2**self.scales,) * 4, mode="reflect")
        spectrum = torch.fft.fft2(padded)
        first_order, second_order = [], []
        for j1 in range(self.scales):
            first = self._modulus(spectrum, self.psi[j1], 2**j1)
            first_order.append(self._averaged(first, j1))
            if j1 + 1 == self.scales:
                break
            first_spectrum = torch.fft.fft2(first)
            seconds = []
            for j2 in range(j1 + 1, self.scales):
                second = self._modulus(first_spectrum, _fold(self.psi[j2], 2**j1), 2 ** (j2 - j1))
                seconds.append(self._averaged(second, j2))  # (N, C, angle 1, angle 2, h, w)
            second_order.append(torch.stack(seconds, 2).transpose(2, 3).flatten(2, 4))
        return torch.cat([self._averaged(padded, 0).unsqueeze(2), *first_order, *second_order], 2)

    def forward(self, images: Tensor) -> Tensor:
        """Scattering coefficients of each image, see the class for shapes."""
        if images.dim() != 4 or tuple(images.shape[-2:]) != self.size:
            raise ValueError(
                f"Expected images of shape (N, C, {self.size[0]}, {self.size[1]}), got {tuple(images.shape)}."
            )
        batch, in_channels = images.shape[:2]
        if batch == 0:  # a Poisson batch may be empty
            return images.new_zeros(0, *self.output_shape(in_channels), dtype=torch.float32)
        # Chunks keep the intermediate fields in cache; the result for an image does not depend on the others.
        features = torch.cat([self._coefficients(chunk) for chunk in torch.split(images.float(), self.chunk_size)])
        if self.normalisation_groups is not None:
            flat = features.flatten(0, 1)
            features = F.group_norm(flat, self.normalisation_groups).view_as(features)
        return features.reshape(batch, *self.output_shape(in_channels))

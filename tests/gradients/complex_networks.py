"""Small complex networks, one for each thing that complex numbers can do to the engine. Their outputs are real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gradients.networks import Builder

C64 = torch.complex64


class Bend(nn.Module):
    """Neither holomorphic nor separable: a conjugate that is left out changes every gradient."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.complex(torch.tanh(z.real + 0.3 * z.imag), torch.sin(z.imag - 0.5 * z.real))


class Parts(nn.Module):
    """Real and imaginary parts as real features."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real(z).flatten(-2)


class Magnitude(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z.real.square() + z.imag.square() + 0.1).sqrt()


class Mixed(nn.Module):
    """Without a rule: real and complex parameters, each in one real and one complex place; a conjugated one among them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.turn = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width, dtype=C64))
        self.unused = nn.Parameter(torch.randn(2, dtype=C64))

    def forward(self, z: Tensor) -> Tensor:
        return self.gain * 1j * z + self.turn.conj() * z.conj() * self.gain + self.turn.abs()


class Spectrum(nn.Module):
    """Real parameters, a complex output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.window = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x * self.window)


class Beside(nn.Module):
    """A complex parameter beside child modules, which no hook sees; and one layer twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(width, width, dtype=C64), nn.Parameter(torch.randn(width, dtype=C64))
        self.pair = nn.Parameter(torch.randn(width, 2))
        self.bend = Bend()

    def forward(self, z: Tensor) -> Tensor:
        z = self.layer(self.bend(self.layer(z))) * torch.view_as_complex(self.pair)
        return self.bend(z) + self.shift


class Standardised(nn.Conv2d):
    """A computed weight: no rule holds for it."""

    def forward(self, z: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(z, weight / weight.abs().square().mean((1, 2, 3), keepdim=True).sqrt(), self.bias)


def _through(layer: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(layer, Bend(), Parts()), torch.randn(*shape, dtype=C64)


def _conv(kind: type[nn.Module], spatial: int, **options: object) -> Builder:
    size = {1: (11,), 2: (7, 6), 3: (4, 5, 4)}[spatial]
    return lambda: _through(kind(4, 6, 3, dtype=C64, **options), 5, 4, *size)  # type: ignore[call-arg]


def _cnn() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1, dtype=C64), Bend(), nn.Conv2d(4, 3, 3, dtype=C64), Bend()]
    layers += [Magnitude(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 3)]
    return nn.Sequential(*layers), torch.randn(6, 1, 6, 6, dtype=C64)


def _spectrum() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(5, 8), Spectrum(8), nn.Linear(8, 3, dtype=C64), Bend(), Parts()), torch.randn(5, 5)


COMPLEX: dict[str, Builder] = {
    "c_linear": lambda: _through(nn.Linear(4, 3, dtype=C64), 6, 4),
    "c_linear_3d": lambda: _through(nn.Linear(4, 3, dtype=C64), 6, 5, 4),
    "c_linear_long": lambda: _through(nn.Linear(3, 2, dtype=C64), 5, 200, 3),
    "c_linear_wide": lambda: _through(nn.Linear(64, 48, dtype=C64), 5, 3, 64),
    "c_linear_no_bias": lambda: _through(nn.Linear(4, 3, bias=False, dtype=C64), 6, 4),
    "c_conv1d": _conv(nn.Conv1d, 1),
    "c_conv1d_strided": _conv(nn.Conv1d, 1, stride=2, padding=2, dilation=2, groups=2),
    "c_conv2d": _conv(nn.Conv2d, 2, padding=(1, 2)),
    "c_conv2d_groups": _conv(nn.Conv2d, 2, groups=2, stride=2),
    "c_conv2d_depthwise": lambda: _through(nn.Conv2d(4, 4, 3, groups=4, dtype=C64), 5, 4, 6, 6),
    "c_conv2d_few_channels": lambda: _through(nn.Conv2d(1, 3, 3, dtype=C64), 5, 1, 6, 6),
    "c_conv2d_reflect": _conv(nn.Conv2d, 2, padding=1, padding_mode="reflect"),
    "c_conv2d_pointwise": lambda: _through(nn.Conv2d(4, 6, 1, groups=2, dtype=C64), 5, 4, 6, 6),
    "c_conv2d_one_pixel": lambda: _through(nn.Conv2d(4, 6, 1, dtype=C64), 5, 4, 1, 1),
    "c_conv3d": _conv(nn.Conv3d, 3),
    "c_conv_transpose1d": lambda: _through(
        nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2, dtype=C64), 5, 4, 6
    ),
    "c_conv_transpose2d": lambda: _through(nn.ConvTranspose2d(3, 2, 3, stride=2, dtype=C64), 4, 3, 4, 4),
    "c_generic": lambda: _through(Mixed(4), 5, 3, 4),
    "c_beside": lambda: _through(Beside(4), 5, 3, 4),
    "c_standardised": lambda: _through(Standardised(2, 3, 3, dtype=C64), 4, 2, 5, 5),
    "c_spectrum": _spectrum,
    "c_cnn": _cnn,
}

"""Magnetic resonance images by their signal equations: what a sequence makes of grey matter, white matter and fluid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_dp.optional import folder_of, require

__all__ = ("SEQUENCES", "TISSUES", "Sequence", "Tissue", "acquire", "coil_maps", "phase_maps", "tissue_maps", "warps")

COARSE = 5  # side of the grids of random numbers that smooth maps are drawn on


@dataclass(frozen=True)
class Tissue:
    """Typical values at 3 T.

    Attributes:
        t1: longitudinal relaxation time in ms.
        t2: transverse relaxation time in ms.
        density: proton density, that of fluid being 1.
    """

    t1: float
    t2: float
    density: float


TISSUES = (Tissue(1330.0, 100.0, 0.8), Tissue(830.0, 75.0, 0.7), Tissue(4000.0, 2000.0, 1.0))
"""Grey matter, white matter, cerebrospinal fluid, in the order of the maps."""


@dataclass(frozen=True)
class Sequence:
    """A spin-echo sequence, with an inversion pulse where ``ti`` is given.

    Attributes:
        name: as radiologists call it.
        tr: repetition time in ms.
        te: echo time in ms.
        ti: inversion time in ms, or ``None``.
    """

    name: str
    tr: float
    te: float
    ti: float | None = None

    def signal(self, t1: Tensor, t2: Tensor, density: Tensor, tr: Tensor, te: Tensor) -> Tensor:
        """``PD (1 - e^(-TR/T1)) e^(-TE/T2)``, or with inversion ``PD (1 - 2 e^(-TI/T1) + e^(-TR/T1)) e^(-TE/T2)``.

        Args:
            t1: of the tissues, in ms; shapes broadcast.
            t2: of the tissues, in ms.
            density: of the tissues.
            tr: factor on the sequence's own repetition time.
            te: factor on its echo time.
        """
        recovered = torch.exp(-self.tr * tr / t1)
        start = 1 - recovered if self.ti is None else 1 - 2 * torch.exp(-self.ti / t1) + recovered
        return density * start * torch.exp(-self.te * te / t2)


SEQUENCES = (
    Sequence("T1w", 500.0, 10.0),
    Sequence("T2w", 4000.0, 100.0),
    Sequence("PDw", 3000.0, 15.0),
    Sequence("FLAIR", 9000.0, 100.0, 2500.0),
)
"""The classes, by number."""


def tissue_maps(voxel: int = 3) -> NDArray[np.float32]:
    """Real anatomy: the tissue probabilities of the MNI152 2009a template that nilearn ships.

    Fluid is what the brain mask leaves beside grey and white matter.

    Args:
        voxel: side of a voxel in mm; averages of the 1 mm maps.

    Returns:
        ``(3, slices, rows, columns)`` in [0, 1]: grey matter, white matter, fluid; axial slices from below.

    Raises:
        ModuleNotFoundError: nilearn or nibabel is missing; the message names the extra.
    """
    folder = folder_of("nilearn", "data", "The tissue maps of KSpaceDataModule") / "datasets" / "data"
    nibabel = require("nibabel", "data", "Reading tissue maps")
    grey, white, image = (
        torch.from_numpy(
            np.asarray(nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz").dataobj)
        ).float()
        for kind in ("gm", "wm", "t1")
    )
    grey, white = grey / 255, white / 255
    maps = torch.stack([grey, white, ((image > 0).float() - grey - white).clamp(0, 1)])
    maps = F.avg_pool3d(maps, voxel).permute(0, 3, 2, 1).flip(2)
    found: NDArray[np.float32] = maps.contiguous().numpy()
    return found


def warps(n: int, size: int, strength: float, generator: torch.Generator) -> Tensor:
    """Smooth deformations of the plane, one for each pseudo-subject: affine and elastic.

    Args:
        n: how many.
        size: side of the grid.
        strength: 1 is a rotation of 10 degrees, 8 % of scale and shear, and displacements of 4 % of the field of view, all
            standard deviations.
        generator: what draws them.

    Returns:
        ``(n, size, size, 2)``: where each pixel is taken from, as :func:`torch.nn.functional.grid_sample` wants it.
    """
    turn = torch.randn(n, generator=generator) * strength * math.radians(10)
    cosine, sine = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    stretch = torch.eye(2) + 0.08 * strength * torch.randn(n, 2, 2, generator=generator)
    shift = 0.04 * strength * torch.randn(n, 2, 1, generator=generator)
    affine = F.affine_grid(torch.cat([rotation @ stretch, shift], 2), [n, 1, size, size], align_corners=False)
    return affine + 0.08 * strength * _smooth(n, 2, size, generator).movedim(1, -1)


def coil_maps(n: int, coils: int, size: int, generator: torch.Generator) -> Tensor:
    """Sensitivities of receive coils around the head, complex64 ``(n, coils, size, size)``: bell-shaped, each with a phase."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle = 2 * math.pi * (torch.arange(coils) / coils + torch.rand(n, 1, generator=generator))
    squares = (x - angle.cos()[..., None, None]) ** 2 + (y - angle.sin()[..., None, None]) ** 2
    phase = 2 * math.pi * torch.rand(n, coils, 1, 1, generator=generator)
    return torch.polar(torch.exp(-squares / 2.0), phase.expand_as(squares))


def phase_maps(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Phases of modulus 1 that vary smoothly over the image, complex64 ``(n, size, size)``: field inhomogeneity."""
    whole = 2 * math.pi * torch.rand(n, 1, 1, generator=generator)
    angle = whole + 1.5 * _smooth(n, 1, size, generator)[:, 0]
    return torch.polar(torch.ones_like(angle), angle)


def acquire(images: Tensor, size: int, noise: Tensor, generator: torch.Generator) -> Tensor:
    """The centre of k-space of complex images, with circular complex Gaussian noise.

    Positions are counted from the middle of the image, as scanners do: the inverse of what is returned,
    :class:`~lightning_dp.models.InverseFourier2d`, is the image in place.

    Args:
        images: complex64 ``(n, coils, H, W)``.
        size: side of the centre that is kept, the zero frequency in its middle.
        noise: ``(n,)``: standard deviation of each part's noise over the root of the mean square of one part of the signal.
        generator: what draws the noise.

    Returns:
        complex64 ``(n, coils, size, size)``.
    """
    axes = (-2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(images, axes), norm="ortho"), axes)
    top, left = ((side - size) // 2 for side in spectrum.shape[-2:])
    centre = spectrum[..., top : top + size, left : left + size]
    power = centre.abs().square().mean((1, 2, 3), keepdim=True)
    parts = torch.randn(*centre.shape, 2, generator=generator)
    noisy: Tensor = centre + torch.view_as_complex(parts) * (0.5 * power).sqrt() * noise.view(-1, 1, 1, 1)
    return noisy


def _smooth(n: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields ``(n, channels, size, size)`` of standard deviation about one half."""
    coarse = torch.randn(n, channels, COARSE, COARSE, generator=generator) * 0.5
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)

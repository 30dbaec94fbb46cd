"""Two real heads and an atlas, from the files of two packages; and warped crops of them, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lightning_dp.optional import folder_of, require

__all__ = ("Brain", "Warps", "find_brains", "read_brain", "read_centres", "warped_crops")

DEBIAN_FOLDER = Path("/usr/share/mricron/templates")
COLIN, ATLAS, NAMES = "ch2bet.nii.gz", "aal.nii.gz", "aal.nii.txt"
MNI = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
GRID_ELEMENTS = 4_000_000  # voxels sampled at once


@dataclass(frozen=True)
class Brain:
    """A skull-stripped T1-weighted image.

    Attributes:
        image: float32 ``(X, Y, Z)``, 1 at the 99th percentile of the brain.
        affine: from voxel indices to millimetres, float64 ``(4, 4)``.
    """

    image: Tensor
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Warps:
    """How much crops differ from the image they are cut from: standard deviations, drawn anew for each crop.

    Attributes:
        shift: of the centre, millimetres.
        degrees: of the rotation about each axis.
        scale: of the logarithm of the size.
        elastic: of a smooth displacement, millimetres.
        gamma: of the logarithm of the exponent on intensities.
        noise: of white noise, in units of the brightest tissue.
    """

    shift: float = 2.0
    degrees: float = 10.0
    scale: float = 0.05
    elastic: float = 1.5
    gamma: float = 0.15
    noise: float = 0.05


def find_brains(root: str | Path | None = None) -> dict[str, Path]:
    """The files of Colin27, of the AAL atlas in its space, and of the MNI152 average, by file name.

    Args:
        root: folder with all of them; ``None`` looks where Debian's package ``mricron-data`` and the Python package
            ``nilearn`` keep them.

    Raises:
        FileNotFoundError: one is missing; the message names the package.
        ModuleNotFoundError: nilearn is missing; the message names the extra.
    """
    found: dict[str, Path] = {}
    for name in (COLIN, ATLAS, NAMES):
        found[name] = (DEBIAN_FOLDER if root is None else Path(root)) / name
        if not found[name].is_file():
            raise FileNotFoundError(
                f"{found[name]} is not there. Colin27 and the AAL atlas come with Debian's package mricron-data "
                "(apt-get install mricron-data); or give root= a folder with ch2bet.nii.gz, aal.nii.gz, aal.nii.txt and "
                f"{MNI}."
            )
    if root is not None and (Path(root) / MNI).is_file():
        return {**found, MNI: Path(root) / MNI}
    found[MNI] = folder_of("nilearn", "data", "The MNI152 brain") / "datasets" / "data" / MNI
    if not found[MNI].is_file():
        raise FileNotFoundError(f"{found[MNI]} is not there. Give root= a folder that also holds {MNI}.")
    return found


def read_brain(path: Path) -> Brain:
    """Reads one image.

    Raises:
        ModuleNotFoundError: nibabel is missing; the message names the extra.
    """
    image, affine = _nifti(path)
    top = np.percentile(image[image > 0], 99)
    return Brain(torch.from_numpy(np.ascontiguousarray(image / top, dtype=np.float32)), affine)


def read_centres(files: Mapping[str, Path], regions: Iterable[str]) -> NDArray[np.float64]:
    """Centroids of regions in both hemispheres, in millimetres: ``(regions, 2, 3)``.

    Args:
        files: see :func:`find_brains`.
        regions: names in the atlas without their ``_L`` and ``_R``.

    Raises:
        ValueError: the atlas has no such region.
    """
    labels, affine = _nifti(files[ATLAS])
    lines = (line.split() for line in files[NAMES].read_text().splitlines())
    numbers = {words[1]: int(words[0]) for words in lines if len(words) >= 2}
    names = [f"{region}_{side}" for region in regions for side in "LR"]
    missing = [name for name in names if name not in numbers]
    if missing:
        raise ValueError(f"{files[NAMES]} names no region {', '.join(missing)}.")
    voxels = np.array(ndimage.center_of_mass(np.ones(labels.shape), labels, [numbers[name] for name in names]))
    centres: NDArray[np.float64] = voxels @ affine[:3, :3].T + affine[:3, 3]
    return centres.reshape(-1, 2, 3)


def warped_crops(
    brain: Brain, centres: Tensor, generator: torch.Generator, warps: Warps, size: int = 28, spacing: float = 1.5
) -> Tensor:
    """Cubes around given points, each moved, turned, scaled, bent and exposed in its own way.

    Args:
        brain: what they are cut from.
        centres: ``(n, 3)`` in millimetres (x, y, z).
        generator: of all that is random.
        warps: how much.
        size: voxels along each side.
        spacing: distance of two voxels, millimetres.

    Returns:
        float32 ``(n, Z, X, Y)``; 0 outside the brain, but for the noise.
    """
    chunk = max(1, GRID_ELEMENTS // size**3)
    return torch.cat([_crops(brain, part, generator, warps, size, spacing) for part in torch.split(centres, chunk)])


def _crops(
    brain: Brain, centres: Tensor, generator: torch.Generator, warps: Warps, size: int, spacing: float
) -> Tensor:
    n = len(centres)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator)

    line = (torch.arange(size) - (size - 1) / 2) * spacing
    z, x, y = torch.meshgrid(line, line, line, indexing="ij")
    local = torch.stack([x, y, z], -1).reshape(-1, 3)  # the order in which volumes are stored: z, x, y
    turned = _rotations(normal(3) * (warps.degrees * torch.pi / 180)) * (normal(1, 1) * warps.scale).exp()
    points = local @ turned.mT + (centres.float() + normal(3) * warps.shift).unsqueeze(1)
    bend = F.interpolate(normal(3, 5, 5, 5) * warps.elastic, size=(size,) * 3, mode="trilinear", align_corners=True)
    points = points + bend.flatten(2).mT
    inverse = torch.from_numpy(np.linalg.inv(brain.affine)).float()
    voxels = points @ inverse[:3, :3].mT + inverse[:3, 3]
    sides = torch.tensor(brain.image.shape, dtype=torch.float32)
    grid = (2 * voxels / (sides - 1) - 1).flip(-1)  # grid_sample wants the last axis first
    values = F.grid_sample(brain.image[None, None], grid.reshape(1, 1, 1, -1, 3), align_corners=True)
    values = values.reshape(n, size, size, size).clamp_min(0)
    values = values ** (normal(1, 1, 1) * warps.gamma).exp()
    return values + normal(size, size, size) * warps.noise


def _rotations(angles: Tensor) -> Tensor:
    """Rotation matrices ``(n, 3, 3)`` from angles about the three axes ``(n, 3)``, radians."""
    skew = torch.zeros(len(angles), 3, 3)
    for axis, (row, column) in enumerate(((2, 1), (0, 2), (1, 0))):
        skew[:, row, column], skew[:, column, row] = angles[:, axis], -angles[:, axis]
    return torch.matrix_exp(skew)


def _nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    nibabel = require("nibabel", "data", f"Reading {path.name}")
    image = nibabel.load(path)
    return np.asarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)

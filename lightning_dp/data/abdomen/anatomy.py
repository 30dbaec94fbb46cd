"""The phantom's anatomy: ellipsoids with uneven borders, in Hounsfield units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

__all__ = ("LIVER", "ORGANS", "PANCREAS", "SITES", "TUMOUR", "Organ", "Patient", "Site", "draw_patient")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Organ:
    """An ellipsoid in a field of view from -1 to 1 along each axis (feet to head, front to back, right to left).

    Args:
        hounsfield: mean attenuation over patients, in Hounsfield units (HU).
        spread: its standard deviation over patients.
        centre: mean position of the centre.
        radii: mean half axes.
    """

    hounsfield: float
    spread: float
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


@dataclass(frozen=True)
class Site:
    """How a scanner differs from the others.

    Args:
        noise: standard deviation of the voxels' noise, in HU.
        contrast: factor on how far an organ is from the surrounding fat.
        offset: added to every voxel, in HU.
    """

    noise: float
    contrast: float = 1.0
    offset: float = 0.0


SITES = (Site(15.0), Site(25.0, 0.85, 5.0), Site(10.0, 1.15, -5.0))
LIVER, PANCREAS, TUMOUR = 1, 7, 8
#: By label, in the order in which they are laid over each other; attenuations typical of the portal venous phase.
ORGANS: Mapping[int, Organ] = {
    LIVER: Organ(105, 12, (0.15, -0.1, -0.42), (0.6, 0.42, 0.36)),
    2: Organ(115, 12, (0.25, 0.25, 0.6), (0.3, 0.2, 0.16)),  # spleen
    3: Organ(20, 10, (0.2, -0.25, 0.3), (0.3, 0.22, 0.2)),  # stomach
    4: Organ(150, 15, (-0.3, 0.42, -0.38), (0.3, 0.14, 0.12)),  # right kidney
    5: Organ(150, 15, (-0.25, 0.42, 0.4), (0.3, 0.14, 0.12)),  # left kidney
    6: Organ(220, 30, (0.0, 0.62, 0.0), (2.0, 0.16, 0.14)),  # spine
    PANCREAS: Organ(90, 10, (-0.1, 0.08, 0.08), (0.2, 0.17, 0.42)),
}
AIR, FAT, BODY = -1000.0, -90.0, (4.0, 0.78, 0.92)  # the body's half axes: it goes on above and below


@dataclass(frozen=True)
class Patient:
    """One patient's scan.

    Args:
        image: ``(D, H, W)`` float32, in HU.
        labels: ``(D, H, W)`` uint8: 0 for none, else the organ's number.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


def draw_patient(
    shape: tuple[int, int, int], traits: Array, site: Site, rng: np.random.Generator, field: float = 1.0
) -> Patient:
    """Draw a patient: everything but ``traits``, ``site`` and ``shape`` is random.

    Args:
        shape: numbers of slices, rows and columns.
        traits: ``(3,)`` of the tumour, N(0, 1) over patients: texture (how uneven it is), enhancement (how much less dense
            than the pancreas), volume.
        site: where the scan is made.
        rng: the patient's own generator.
        field: half the width of the field of view. Below 1 it is a smaller one at a random place around the pancreas.
    """
    middle = (1 - field) * (np.asarray(ORGANS[PANCREAS].centre) + rng.normal(0, 0.2, 3))
    axes = (c + field * (np.linspace(-1, 1, n) if n > 1 else np.zeros(1)) for n, c in zip(shape, middle, strict=True))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    bump = _smooth(shape, 5, rng)  # the same for all organs, as breathing is
    labels = np.zeros(shape, dtype=np.uint8)
    body = sum((axis / radius) ** 2 for axis, radius in zip(grid, BODY, strict=True)) < 1 + 0.05 * rng.standard_normal()
    image = np.where(body, FAT, AIR)
    for label, organ in ORGANS.items():
        centre = np.asarray(organ.centre) + rng.normal(0, 0.05, 3)
        radii = np.asarray(organ.radii) * np.exp(rng.normal(0, 0.1, 3))
        inside = _ellipsoid(grid, centre, radii, rng.normal(0, 0.2)) + 0.25 * bump < 1
        density = FAT + site.contrast * (rng.normal(organ.hounsfield, organ.spread) - FAT)
        image[inside], labels[inside] = density, label
        if label == PANCREAS:
            along = rng.uniform(-0.5, 0.5) * radii[2]  # somewhere from head to tail
            size = 0.17 * np.exp(0.2 * traits[2])
            tumour = _ellipsoid(grid, centre + [0, 0, along], np.array([size] * 3), 0.0) + 0.15 * bump < 1
            less = site.contrast * (45 + 15 * traits[1])
            uneven = 14 * np.exp(0.5 * traits[0]) * rng.standard_normal(shape)
            image[tumour], labels[tumour] = (density - less + uneven)[tumour], TUMOUR
    image += 8 * _smooth(shape, 9, rng) + site.noise * rng.standard_normal(shape) + site.offset
    return Patient(image.astype(np.float32), labels)


def _ellipsoid(grid: Array, centre: Array, radii: Array, angle: float) -> Array:
    """Below 1 inside; turned by ``angle`` within the slices."""
    z, y, x = (axis - c for axis, c in zip(grid, centre, strict=True))
    y, x = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    found: Array = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2
    return found


def _smooth(shape: tuple[int, int, int], knots: int, rng: np.random.Generator) -> Array:
    """A smooth random field of about unit size: normal numbers on a coarse grid, interpolated."""
    coarse = rng.standard_normal((knots,) * 3)
    field: Array = zoom(coarse, [n / knots for n in shape], order=1, grid_mode=True, mode="nearest")
    return field

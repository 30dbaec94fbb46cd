"""Two made-up brains and an atlas in the form of the real files, small enough to write in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_dp.data.brains import ATLAS, COLIN, MNI, NAMES
from lightning_dp.data.region_mnist import REGIONS

SIDE = 44


def write_brains(folder: Path) -> Path:
    """Ellipsoids with stripes: across x in the one, across z in the other; regions are little cubes."""
    import nibabel

    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -3.0 * SIDE / 2
    x, y, z = np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")
    centre = (SIDE - 1) / 2
    brain = (x - centre) ** 2 + (y - centre) ** 2 + (z - centre) ** 2 < (0.45 * SIDE) ** 2
    for name, along in ((COLIN, x), (MNI, z)):
        image = (brain * (150 + 80 * np.sin(along / 2))).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / name)
    atlas, lines = np.zeros((SIDE,) * 3, np.uint8), []
    places = np.random.default_rng(0).integers(12, SIDE - 12, (2 * len(REGIONS), 3))
    for number, (a, b, c) in enumerate(places, start=1):
        atlas[a - 1 : a + 2, b - 1 : b + 2, c - 1 : c + 2][atlas[a - 1 : a + 2, b - 1 : b + 2, c - 1 : c + 2] == 0] = (
            number
        )
        lines.append(f"{number} {REGIONS[(number - 1) // 2]}_{'LR'[(number - 1) % 2]} {2000 + number}")
    nibabel.save(nibabel.Nifti1Image(atlas, affine), folder / ATLAS)
    (folder / NAMES).write_text("\n".join(lines) + "\n")
    return folder

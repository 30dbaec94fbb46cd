"""RegionMNIST3D: small volumes of real anatomy from two brains, to stand in for MedMNIST3D; and with a planted lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.brains import COLIN, MNI, Brain, Warps, find_brains, read_brain, read_centres, warped_crops
from lightning_dp.data.cache import generate_once, progress
from lightning_dp.data.card import DataCard
from lightning_dp.data.volumes import CompactDataset
from lightning_dp.errors import PrivacyConfigError

__all__ = ("REGIONS", "RegionMNIST3DDataModule", "plant_lesions")

REGIONS = (
    "Precentral", "Frontal_Mid", "Hippocampus", "Calcarine", "Lingual", "Occipital_Mid", "Parietal_Sup", "Putamen",
    "Thalamus", "Temporal_Mid", "Cerebelum_Crus1",
)  # fmt: skip
"""The eleven classes: regions of the AAL atlas, left and right together."""

SIZE = 28
MARGIN = 5  # slices at the ends of an axis in which no lesion is planted
CHUNK = 500  # volumes made at once


class RegionMNIST3DDataModule(ArrayDataModule):
    """Volumes of 28 x 28 x 28 voxels around eleven brain regions: a **stand-in** for MedMNIST3D, which cannot be bundled.

    Anatomy is real, but there are only **two heads**: the volumes for training (and validation) are warped crops of Colin27,
    those for test of the MNI152 average, which is another brain. So no subject is in training and test, no warp is in two
    parts, and n counts warped crops and not people: an eps for them is a demonstration. Numbers on it cannot be compared
    with any on MedMNIST.

    With ``task="region"`` the label is the region. With ``task="lesion"`` half of the volumes get a bright disc, one slice
    thick, in a slice that is known: the label says whether there is one, and the third item of a batch says where.

    Each volume is standardised by its own mean and deviation, which tell nothing of another.

    Args:
        task: ``"region"``, eleven classes, or ``"lesion"``, two.
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        n_train: volumes for training.
        n_val: volumes for validation, further warps of the brain that is trained on; 0 for none.
        n_test: volumes for test.
        planes: the axes to which the disc may be orthogonal, one drawn for each lesion (``task="lesion"``).
        contrast: brightness of the disc, in standard deviations of the volume.
        seed: of all that is random.
        root: folder with the four files of :func:`~lightning_dp.data.brains.find_brains`.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Raises:
        PrivacyConfigError: for an unknown task or plane.
        FileNotFoundError: in ``prepare_data``, if the brains are not there; the message names Debian's package.

    Shape:
        Batches ``(volumes, labels)``: float32 ``(N, 1, 28, 28, 28)``, int64 ``(N,)``; for lesions also int64 ``(N,)``, the
        number of the lesion's slice in the order z, x, y (0 to 83), or -1.
    """

    regions: ClassVar[tuple[str, ...]] = REGIONS
    card = DataCard(
        name="RegionMNIST3D (stand-in: warped crops of two real brains)",
        licence="BSD-3-Clause (mricron-data, nilearn); the atlas and the templates have terms of their own",
        n=3000,
        real=False,
        unit="one warped crop, not a person",
        source="Colin27 and AAL from Debian's mricron-data, MNI152 2009a from nilearn; made by this package",
    )

    def __init__(
        self,
        task: Literal["region", "lesion"] = "region",
        batch_size: int = 64,
        n_train: int = 3000,
        n_val: int = 0,
        n_test: int = 500,
        planes: Sequence[Literal["z", "x", "y"]] = ("z", "x", "y"),
        contrast: float = 3.0,
        seed: int = 0,
        root: str | Path | None = None,
        eval_batch_size: int = 100,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if task not in ("region", "lesion"):
            raise PrivacyConfigError(f"task={task!r} is unknown; choose 'region' or 'lesion'.")
        if not planes or not set(planes) <= set("zxy"):
            raise PrivacyConfigError(f"planes={list(planes)}: choose some of 'z', 'x', 'y'.")
        self.task, self.counts = task, {"train": n_train, "val": n_val, "test": n_test}
        self.planes, self.contrast, self.seed, self.root = tuple(planes), contrast, seed, root
        self.num_classes = len(REGIONS) if task == "region" else 2
        self.columns = ("inputs", "labels") if task == "region" else ("inputs", "labels", "planted")

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All parts, from the cache or made now."""
        facts: dict[str, Any] = {
            "version": 1, "task": self.task, "counts": self.counts, "seed": self.seed, "warps": asdict(Warps()),
            "root": None if self.root is None else str(Path(self.root).resolve()),
        }  # fmt: skip
        if self.task == "lesion":
            facts |= {"planes": list(self.planes), "contrast": self.contrast}
        return generate_once("region_mnist_3d", facts, self._make)

    @override
    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> CompactDataset:
        """Volumes that become float32 when they are taken."""
        return CompactDataset(columns, unit_id=unit_id)

    def _make(self) -> Mapping[str, NDArray[Any]]:
        files = find_brains(self.root)
        centres = torch.from_numpy(read_centres(files, REGIONS))
        colin, mni = (read_brain(files[name]) for name in (COLIN, MNI))
        arrays: dict[str, NDArray[Any]] = {}
        for number, (part, n) in enumerate(self.counts.items()):
            if n:
                # A stream of its own for each part: no warp is drawn in two, whatever their sizes.
                generator = torch.Generator().manual_seed(3 * self.seed + number)
                found = self._part(mni if part == "test" else colin, centres, n, generator, part)
                arrays |= {f"{part}/{name}": value.numpy() for name, value in found.items()}
        return arrays

    def _part(self, brain: Brain, centres: Tensor, n: int, generator: torch.Generator, part: str) -> dict[str, Tensor]:
        region = (torch.arange(n) % len(REGIONS))[torch.randperm(n, generator=generator)]
        points = centres[region, torch.randint(2, (n,), generator=generator)]
        crops = [
            warped_crops(brain, chunk, generator, Warps(), SIZE)
            for chunk in progress(torch.split(points, CHUNK), f"RegionMNIST3D, {part}")
        ]
        volumes = _standardised(torch.cat(crops))
        labels = region
        found: dict[str, Tensor] = {}
        if self.task == "lesion":
            labels = (torch.arange(n) % 2)[torch.randperm(n, generator=generator)]
            found["planted"] = plant_lesions(volumes, labels == 1, self.planes, self.contrast, generator)
        return {"inputs": volumes.unsqueeze(1).half(), "labels": labels, **found}


def plant_lesions(
    volumes: Tensor, chosen: Tensor, planes: Sequence[str], contrast: float, generator: torch.Generator
) -> Tensor:
    """Adds a bright disc, one slice thick, to the chosen volumes; in place.

    Its centre lies where there is tissue, its radius is between 2.5 and 4 voxels, with a soft edge.

    Args:
        volumes: ``(n, Z, X, Y)``, standardised.
        chosen: bool ``(n,)``.
        planes: the axes to which a disc may be orthogonal; one is drawn for each.
        contrast: what is added at the centre.
        generator: of all that is random.

    Returns:
        int64 ``(n,)``: the number of the slice among those along z, x and y, one after the other; -1 where there is none.
    """
    n, sides = len(volumes), volumes.shape[1:]
    allowed = torch.tensor(["zxy".index(plane) for plane in planes])
    axis = allowed[torch.randint(len(allowed), (n,), generator=generator)]
    centre = _on_tissue(volumes, generator)
    radius = 2.5 + 1.5 * torch.rand(n, generator=generator)
    squares = torch.zeros_like(volumes)
    inside = torch.ones_like(volumes, dtype=torch.bool)
    for k, side in enumerate(sides):
        shape = [n, 1, 1, 1]
        shape[k + 1] = side
        distance = (torch.arange(side) - centre[:, k : k + 1]).reshape(shape)
        across = (axis == k).reshape(n, 1, 1, 1)
        squares += torch.where(across, 0, distance**2)
        inside &= torch.where(across, distance == 0, True)
    disc = torch.sigmoid(2 * (radius.reshape(n, 1, 1, 1) - squares.sqrt())) * inside
    volumes += contrast * disc * chosen.reshape(n, 1, 1, 1)
    before = torch.tensor([0, sides[0], sides[0] + sides[1]])
    slices = before[axis] + centre.gather(1, axis.unsqueeze(1)).squeeze(1)
    return torch.where(chosen, slices, -1)


def _on_tissue(volumes: Tensor, generator: torch.Generator, tries: int = 16) -> Tensor:
    """A voxel of each volume, away from the ends, and brighter than the volume's mean if one of the tries is: ``(n, 3)``."""
    n = len(volumes)
    tried = torch.stack(
        [torch.randint(MARGIN, side - MARGIN, (n, tries), generator=generator) for side in volumes.shape[1:]], -1
    )
    rows = torch.arange(n).unsqueeze(1)
    bright = volumes[rows, tried[..., 0], tried[..., 1], tried[..., 2]] > 0
    first = bright.float().argmax(1)
    return tried[rows.squeeze(1), first]


def _standardised(volumes: Tensor) -> Tensor:
    mean, deviation = volumes.mean((1, 2, 3), keepdim=True), volumes.std((1, 2, 3), keepdim=True)
    return (volumes - mean) / deviation.clamp_min(1e-3)

"""Multi-sequence MRI in k-space: complex data on real anatomy, by signal equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.cache import generate_once, progress
from lightning_dp.data.card import DataCard
from lightning_dp.data.mri import SEQUENCES, TISSUES, acquire, coil_maps, phase_maps, tissue_maps, warps
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.complex import ContrastHistogram2d

__all__ = ("KSpaceDataModule", "make_kspace")

VERSION = 2
GRID = 64  # pixels a side before the centre of k-space is cut out
AT_ONCE = 64  # pseudo-subjects


def make_kspace(
    maps: NDArray[np.float32],
    subjects: int,
    slices: int,
    size: int,
    coils: int,
    noise: float,
    seed: int,
    grid: int = GRID,
) -> dict[str, NDArray[Any]]:
    """Scans of pseudo-subjects: each a warp of one anatomy, some of its slices, each slice with all four sequences.

    A subject has relaxation times and densities of its own (5 % around :data:`~lightning_dp.data.mri.TISSUES`); a scan has a
    receiver gain between 1/4 and 4 (so that the raw scale says nothing), echo and repetition times within 10 % of the
    protocol's, a phase map, coil maps, and noise of one half to twice ``noise``.

    Args:
        maps: ``(3, slices, rows, columns)`` in [0, 1]: grey matter, white matter, fluid.
        subjects: pseudo-subjects.
        slices: slices of each.
        size: side of the k-space that is kept, at most ``grid``.
        coils: receive coils.
        noise: standard deviation of the noise over that of the signal, in k-space.
        seed: of everything.
        grid: side of the images.

    Returns:
        ``inputs`` complex64 ``(subjects * slices * 4, coils, size, size)``, ``labels`` int64 (numbers of
        :data:`~lightning_dp.data.mri.SEQUENCES`) and ``unit_id`` int64 (the subject).

    Raises:
        PrivacyConfigError: for sizes that do not fit, or maps without grey matter.
    """
    if not 1 <= size <= grid or min(subjects, slices, coils) < 1:
        raise PrivacyConfigError(
            f"size={size}, subjects={subjects}, slices={slices}, coils={coils}: all must be positive, and the size at most "
            f"{grid}, the side of the images."
        )
    if maps.ndim != 4 or len(maps) != len(TISSUES):
        raise PrivacyConfigError(f"maps of shape {maps.shape}: give (3, slices, rows, columns), one for each tissue.")
    tissue = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    grey = tissue[0].sum((1, 2))
    usable = torch.nonzero(grey > 0.3 * grey.max()).flatten()
    if float(grey.max()) <= 0:
        raise PrivacyConfigError("the maps hold no grey matter, so there is nothing to scan.")
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _scans(tissue, usable, min(AT_ONCE, subjects - first), slices, size, coils, noise, grid, generator)
        for first in progress(range(0, subjects, AT_ONCE), "k-space")
    ]
    scans = subjects * slices
    return {
        "inputs": np.concatenate(parts),
        "labels": np.tile(np.arange(len(SEQUENCES)), scans),
        "unit_id": np.repeat(np.arange(subjects), slices * len(SEQUENCES)),
    }


def _scans(
    maps: torch.Tensor,
    usable: torch.Tensor,
    subjects: int,
    slices: int,
    size: int,
    coils: int,
    noise: float,
    grid: int,
    generator: torch.Generator,
) -> NDArray[np.complex64]:
    """All scans of some subjects, subject by subject and slice by slice, the sequences in turn."""
    levels = usable[torch.randint(len(usable), (subjects, slices), generator=generator)].flatten()
    field = warps(subjects, grid, 1.0, generator).repeat_interleave(slices, 0)
    rows, columns = maps.shape[2:]
    # The field of view holds the longer side; pixels are square.
    field = field * torch.tensor([max(rows, columns) / columns, max(rows, columns) / rows]) * 1.1
    anatomy = F.grid_sample(maps[:, levels].transpose(0, 1), field, align_corners=False).clamp(0, 1)
    own = torch.exp(0.05 * torch.randn(3, subjects, len(TISSUES), generator=generator)).repeat_interleave(slices, 1)
    typical = torch.tensor([[t.t1, t.t2, t.density] for t in TISSUES]).T[:, None]
    t1, t2, density = typical * own
    scans = subjects * slices

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    images = []
    for sequence in SEQUENCES:
        tr, te = uniform(0.9, 1.1, 2, scans, 1)
        weights = sequence.signal(t1, t2, density, tr, te)
        image = torch.einsum("nt,ntyx->nyx", weights, anatomy)
        gain = torch.exp(uniform(-1, 1, scans, 1, 1) * float(np.log(4.0)))
        turned = (gain * image) * phase_maps(scans, grid, generator)
        images.append(turned.unsqueeze(1) * coil_maps(scans, coils, grid, generator))
    stacked = torch.stack(images, 1).flatten(0, 1)
    level = noise * torch.exp(uniform(-1, 1, len(stacked)) * float(np.log(2.0)))
    found: NDArray[np.complex64] = acquire(stacked, size, level, generator).numpy()
    return found


class KSpaceDataModule(ArrayDataModule):
    """Which sequence made this k-space? T1-weighted, T2-weighted, proton-density-weighted or FLAIR.

    **A stand-in** for raw multi-sequence MRI, which no package ships: real tissue maps (one template), pseudo-subjects by
    elastic warps of it, signals by the spin-echo equations. Warps of the test part are others than those of the training
    part; the anatomy behind all is one. Numbers obtained here say nothing about scanners.

    Args:
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        n_subjects: pseudo-subjects in the training part.
        n_test: in the test part.
        n_val: in the validation part; 0: none.
        slices: slices of each subject, each scanned with the four sequences.
        size: side of the centre of k-space that is kept, at most 64.
        coils: receive coils, the channels.
        noise: noise over signal, as standard deviations in k-space; single scans get half to twice that.
        seed: of the data.
        features: ``"kspace"``, raw, or ``"contrast"``: each scan replaced, once, by its contrast histograms
            (:class:`~lightning_dp.models.ContrastHistogram2d`), a fixed function of the one scan, which spends no privacy.
        maps: tissue maps in the place of the template's, ``(3, slices, rows, columns)``; nothing is then cached.
        cache_dir: where generated data are kept; see :func:`~lightning_dp.data.cache.cache_folder`.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Shape:
        Batches ``(inputs, labels)``: complex64 ``(N, coils, size, size)`` or ``(N, 144)``, int64 ``(N,)``. The train set's
        ``unit_id`` is the pseudo-subject: ``DPStrategy(unit="unit_id")`` protects subjects, the default single scans.

    Raises:
        PrivacyConfigError: for sizes out of range, or unknown features.
        ModuleNotFoundError: without ``maps``, if nilearn or nibabel is missing; the message names the extra.
    """

    num_classes = len(SEQUENCES)
    card = DataCard(
        name="simulated multi-sequence k-space (stand-in for raw MRI)",
        licence="BSD-3-Clause (nilearn), the MNI152 2009a template free to use",
        n=4096,
        real=False,
        unit="one scan (one slice, one sequence), or one pseudo-subject with unit='unit_id'",
        source="signal equations on the tissue maps of the MNI152 2009a template; pseudo-subjects are warps of it",
    )

    def __init__(
        self,
        batch_size: int = 512,
        n_subjects: int = 512,
        n_test: int = 128,
        n_val: int = 0,
        slices: int = 2,
        size: int = 32,
        coils: int = 2,
        noise: float = 0.05,
        seed: int = 0,
        features: Literal["kspace", "contrast"] = "kspace",
        maps: NDArray[np.float32] | None = None,
        cache_dir: str | None = None,
        eval_batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if n_subjects < 1 or n_test < 1 or n_val < 0:
            raise PrivacyConfigError(
                f"n_subjects={n_subjects}, n_test={n_test}, n_val={n_val}: training and test need at least one subject."
            )
        if features not in ("kspace", "contrast"):
            raise PrivacyConfigError(f"features={features!r} is unknown; choose 'kspace' or 'contrast'.")
        self.features = features
        self.subjects = {"train": n_subjects, "test": n_test, "val": n_val}
        self.slices, self.size, self.coils, self.noise = slices, size, coils, noise
        self.seed, self.maps, self.cache_dir = seed, maps, cache_dir

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Make or read the parts."""
        if self.maps is not None:
            return self._make(self.maps)
        facts = {
            "version": VERSION, "subjects": self.subjects, "slices": self.slices, "size": self.size,
            "coils": self.coils, "noise": self.noise, "seed": self.seed, "features": self.features,
        }  # fmt: skip
        return generate_once("kspace", facts, lambda: self._make(tissue_maps()), self.cache_dir)

    def _make(self, maps: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        first = 0
        for number, (part, subjects) in enumerate(self.subjects.items()):
            if not subjects:
                continue
            # A stream of its own for each part: the test part does not change with the number of training subjects.
            seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint32)[0])
            made = make_kspace(maps, subjects, self.slices, self.size, self.coils, self.noise, seed)
            made["unit_id"] = made["unit_id"] + first
            if self.features == "contrast":
                made["inputs"] = self._histograms(made["inputs"])
            first += subjects
            found.update({f"{part}/{name}": array for name, array in made.items()})
        return found

    @torch.no_grad()
    def _histograms(self, scans: NDArray[Any]) -> NDArray[Any]:
        layer = ContrastHistogram2d(self.coils, self.size)
        parts = torch.split(torch.from_numpy(scans), AT_ONCE)
        found: NDArray[Any] = torch.cat([layer(part) for part in progress(parts, "contrast")]).numpy()
        return found

"""Pictures that look like chest X-rays from afar: lungs of real shape, ribs, a heart, findings, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_dp.data.cache import progress

__all__ = ("Pictures", "simulate")

CHUNK = 500
TISSUE, AIR = 0.75, 0.45  # brightness outside the lungs, and how much darker they are
NORMAL_HEART, LARGE_HEART = (0.36, 0.42), (0.62, 0.72)  # its width over that of the chest; above 0.5 is cardiomegaly
EFFUSION, INFILTRATE = 0.70, 0.60  # brightness added


@dataclass(frozen=True)
class Pictures:
    """Simulated pictures, with what only a simulation knows.

    Attributes:
        images: float32 ``(n, 1, size, size)``, about 0 (air) to 1.
        strength: norm of each finding's pattern over the standard deviation of the noise, whether or not the picture has the
            finding, float32 ``(n, findings)``.
    """

    images: NDArray[np.float32]
    strength: NDArray[np.float32]


def simulate(
    masks: NDArray[np.bool_],
    mask_of_patient: NDArray[np.int64],
    patient: NDArray[np.int64],
    amount: NDArray[np.float32],
    size: int = 32,
    noise: float = 0.08,
    seed: int = 0,
) -> Pictures:
    """Draws one picture for each visit.

    A patient is one mask, bent and moved in a way of their own; each visit moves it a little. Findings, in this order: a
    wide heart (cardiomegaly), a bright base of one lung (effusion), a blob in a lung (infiltrate). Each is a pattern that is
    added ``amount`` times, before white noise.

    Args:
        masks: lungs, ``(m, height, width)``.
        mask_of_patient: number of each patient's mask, ``(patients,)``.
        patient: number of each visit's patient, ``(n,)``.
        amount: of each finding in each visit: 0 for none, 1 for one of the usual contrast, ``(n, 3)``.
        size: pixels a side.
        noise: its standard deviation; a lung is 0.45 darker than what is around it.
        seed: of everything that is random.

    Returns:
        The pictures, in the order of the visits.
    """
    rng = np.random.default_rng(seed)
    own = _Movement.draw(rng, len(mask_of_patient), turn=0.05, scale=0.06, shift=0.03, bend=0.03)
    of_visit = _Movement.draw(rng, len(patient), turn=0.02, scale=0.01, shift=0.015, bend=0.01)
    lungs = torch.from_numpy(masks.astype(np.float32))
    images = np.empty((len(patient), 1, size, size), np.float32)
    strength = np.empty((len(patient), 3), np.float32)
    for start in progress(range(0, len(patient), CHUNK), "chest X-rays"):
        rows = np.arange(start, min(start + CHUNK, len(patient)))
        grid = own.take(patient[rows]).grid(size) + of_visit.take(rows).grid(size)
        chosen = lungs[torch.from_numpy(mask_of_patient[patient[rows]])][:, None]
        mask = F.grid_sample(chosen, grid, padding_mode="zeros", align_corners=False)[:, 0]
        picture, patterns = _draw(mask, rng)
        added = (patterns * torch.from_numpy(amount[rows]).float()[:, :, None, None]).sum(1)
        grain = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
        images[rows, 0] = (picture + added + noise * grain).numpy()
        strength[rows] = (patterns.flatten(2).norm(dim=2) / noise).numpy()
    return Pictures(images, strength)


@dataclass(frozen=True)
class _Movement:
    """Turning, stretching, shifting and bending: ``affine`` (n, 2, 3) is added to none, ``bend`` is (n, 2, 4, 4)."""

    affine: NDArray[np.float32]
    bend: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int, turn: float, scale: float, shift: float, bend: float) -> _Movement:
        angle = rng.normal(0, turn, n)
        stretch = np.exp(rng.normal(0, scale, (n, 2)))
        affine = np.empty((n, 2, 3), np.float32)
        affine[:, 0, 0], affine[:, 0, 1] = np.cos(angle) * stretch[:, 0] - 1, -np.sin(angle)
        affine[:, 1, 0], affine[:, 1, 1] = np.sin(angle), np.cos(angle) * stretch[:, 1] - 1
        affine[:, :, 2] = rng.normal(0, shift, (n, 2))
        return cls(affine, rng.normal(0, bend, (n, 2, 4, 4)).astype(np.float32))

    def take(self, index: NDArray[np.int64]) -> _Movement:
        return _Movement(self.affine[index], self.bend[index])

    def grid(self, size: int) -> Tensor:
        """Half of the place a picture's pixel is taken from, plus the displacement: the sum of two makes a whole grid."""
        still = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
        affine = torch.from_numpy(self.affine) + still
        grid = F.affine_grid(affine, [len(affine), 1, size, size], align_corners=False)
        bent = F.interpolate(torch.from_numpy(self.bend), size=(size, size), mode="bicubic", align_corners=False)
        return grid + bent.permute(0, 2, 3, 1)


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, (n, 1, 1)).astype(np.float32))


def _extent(inside: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place (size,) of lines (n, size) that hold lung, each (n, 1, 1)."""
    low = torch.where(inside, places, torch.inf).amin(1)
    high = torch.where(inside, places, -torch.inf).amax(1)
    empty = torch.isinf(low)  # a mask that was moved out of the picture
    return low.masked_fill(empty, -0.5)[:, None, None], high.masked_fill(empty, 0.5)[:, None, None]


def _draw(mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (n, size, size) without findings or noise, and the patterns of the findings (n, 3, size, size)."""
    n, size, _ = mask.shape
    places = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)
    y, x = places[None, :, None], places[None, None, :]
    left, right = _extent((mask > 0.5).any(1), places)
    top, bottom = _extent((mask > 0.5).any(2), places)
    middle, width, height = (left + right) / 2, right - left, bottom - top

    curve = y + 0.3 * (x - middle) ** 2
    ribs = torch.sin(2 * np.pi * (_uniform(rng, n, 2.5, 3.5) * curve + _uniform(rng, n, 0, 1)))
    lung = TISSUE + mask * (0.06 * ribs - AIR)

    def heart(share: Tensor) -> Tensor:
        along = (x - middle - 0.05 * width) / (share * width / 2)
        across = (y - bottom + 0.28 * height) / (0.24 * height)
        return torch.sigmoid((1 - (along**2 + across**2).sqrt()) / 0.08)

    normal, large = heart(_uniform(rng, n, *NORMAL_HEART)), heart(_uniform(rng, n, *LARGE_HEART))
    picture = lung + (TISSUE - lung) * normal
    cardiomegaly = (TISSUE - lung) * (large - normal)

    seen = mask * (1 - normal)  # of the lungs, beside the heart
    side = torch.where(_uniform(rng, n, 0, 1) < 0.5, -1.0, 1.0)
    of_side = torch.sigmoid(side * (x - middle) / 0.05)
    _, base = _extent((seen * of_side > 0.5).any(2), places)
    depth = _uniform(rng, n, 0.25, 0.40) * height
    effusion = EFFUSION * seen * of_side * torch.sigmoid((y - base + depth) / 0.06)

    somewhere = torch.from_numpy(rng.random((n, size, size), dtype=np.float32))
    spot = ((seen > 0.5) * (1 + somewhere)).flatten(1).argmax(1)  # any pixel of a lung, each as likely
    at_y, at_x = places[spot // size][:, None, None], places[spot % size][:, None, None]
    distance = ((x - at_x) ** 2 + (y - at_y) ** 2) / _uniform(rng, n, 0.28, 0.40) ** 2
    infiltrate = INFILTRATE * seen * torch.exp(-distance / 2)

    exposure = _uniform(rng, n, 0.9, 1.1)
    patterns = torch.stack([cardiomegaly, effusion, infiltrate], 1)
    return exposure * picture + _uniform(rng, n, -0.03, 0.03), exposure[:, None] * patterns

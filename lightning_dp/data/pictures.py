"""Colour pictures kept as bytes, and random crops and flips of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataset

__all__ = ("PictureDataset",)


class PictureDataset(ArrayDataset):
    """Samples ``(picture, ...)`` whose pictures, uint8 ``(n, C, H, W)``, are read as float32 in [-1, 1].

    The range is that of the bytes, a public constant: no statistic of the pictures is taken.

    Args:
        columns: pictures first; arrays with the samples along axis 0.
        unit_id: the owner of each sample; see `ArrayDataset`.
        augment: whether each read picture is shifted by up to an eighth of its side (the edge is mirrored) and mirrored
            with probability one half, anew each time it is read: what De et al. 2022 (arXiv 2204.13650) do on CIFAR-10.
    """

    def __init__(
        self, columns: Sequence[NDArray[Any]], unit_id: NDArray[np.int64] | None = None, augment: bool = False
    ) -> None:
        super().__init__(columns, unit_id)
        self.augment = augment

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        picture, *others = super().__getitem__(index)
        picture = picture.float() / 127.5 - 1
        return (_moved(picture) if self.augment else picture, *others)


def _moved(picture: Tensor) -> Tensor:
    reach = picture.shape[-1] // 8
    down, right = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    height, width = picture.shape[1:]
    padded = F.pad(picture.unsqueeze(0), [reach] * 4, mode="reflect")[0]
    picture = padded[:, down : down + height, right : right + width]
    return picture.flip(-1) if torch.rand(()) < 0.5 else picture

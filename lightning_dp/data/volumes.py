"""What data modules of images and volumes share: samples that are kept small, and volumes brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataset
from lightning_dp.errors import PrivacyConfigError

__all__ = ("CompactDataset", "fit_volume")


class CompactDataset(ArrayDataset):
    """Samples whose first column is kept in a small type and becomes float32 when it is taken.

    Args:
        columns: arrays with the samples along axis 0.
        scale: the first column is multiplied by it. Give a public constant: a statistic of the data is a release that no
            eps accounts for.
        unit_id: the owner of each sample; see :class:`ArrayDataset`.
    """

    def __init__(
        self, columns: Sequence[NDArray[Any]], scale: float = 1.0, unit_id: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(columns, unit_id)
        self.scale = scale

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        first, *others = super().__getitem__(index)
        return first.float() * self.scale, *others


def fit_volume(volume: Tensor, size: Sequence[int], value: float = 0.0) -> Tensor:
    """Cropped or filled up around the centre to a size, axis by axis; nothing is resampled.

    Args:
        volume: ``(..., Z, X, Y)``.
        size: ``(Z, X, Y)`` of the result.
        value: fills what is missing.

    Raises:
        PrivacyConfigError: the volume has fewer axes than ``size``, or a size is not positive.
    """
    if volume.dim() < len(size) or any(length < 1 for length in size):
        raise PrivacyConfigError(
            f"a volume of shape {tuple(volume.shape)} cannot be brought to the size {tuple(size)}."
        )
    missing: list[int] = []
    for have, want in zip(reversed(volume.shape[-len(size) :]), reversed(size), strict=True):
        before = (want - have) // 2 if want >= have else -((have - want) // 2)
        missing += [before, want - have - before]
    return pad(volume, missing, value=value)  # negative amounts crop

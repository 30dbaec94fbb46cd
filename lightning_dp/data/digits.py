"""The digits that come with scikit-learn: a real set small enough for tests and first steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.splits import stratified_split
from lightning_dp.optional import require

__all__ = ("DigitsDataModule",)


class DigitsDataModule(ArrayDataModule):
    """1,797 handwritten digits of 8 x 8 pixels in ten classes, from the scikit-learn package (no download).

    The set has no official split: a seeded stratified one is made, first the test part, then the validation part.
    The train loader is an ordinary shuffling DataLoader; a private strategy replaces its sampler by its own.

    Args:
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B.
        val_size: Number of validation samples; 0 for none.
        test_size: Number of test samples.
        seed: Seed of the split.
        num_workers: Worker processes of the loaders.

    Shape:
        Batches ``(images, labels)``: float32 ``(N, 1, 8, 8)`` in [0, 1], int64 ``(N,)``.

    Raises:
        ModuleNotFoundError: in ``prepare_data``, if scikit-learn is not installed.
    """

    num_classes = 10
    card = DataCard(
        name="Optical recognition of handwritten digits (scikit-learn load_digits)",
        licence="CC BY 4.0 (UCI Machine Learning Repository); shipped with scikit-learn under BSD-3-Clause",
        n=1797,
        real=True,
        unit="one image",
        source="E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998 (the 1,797 test images)",
    )

    def __init__(
        self, batch_size: int = 256, val_size: int = 0, test_size: int = 360, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__(batch_size, batch_size, num_workers, has_validation=val_size > 0)
        self.val_size, self.test_size, self.seed = val_size, test_size, seed

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return 1, 8, 8

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        bunch = require("sklearn.datasets", "recipes", "DigitsDataModule").load_digits()
        images = (np.asarray(bunch.images, dtype=np.float32) / 16.0)[:, None]
        labels = np.asarray(bunch.target, dtype=np.int64)
        rest, test = stratified_split(labels, self.test_size, self.seed, "test_size=")
        kept, val = stratified_split(labels[rest], self.val_size, self.seed + 1, "val_size=")
        found: dict[str, NDArray[Any]] = {}
        for part, index in (("train", rest[kept]), ("val", rest[val]), ("test", test)):
            found |= {f"{part}/inputs": images[index], f"{part}/labels": labels[index]} if len(index) else {}
        return found

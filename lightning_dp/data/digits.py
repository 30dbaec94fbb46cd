"""The digits that come with scikit-learn: a real set small enough for tests and first steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.data.card import DataCard
from lightning_dp.data.splits import stratified_split

__all__ = ("DigitsDataModule",)


class DigitsDataModule(LightningDataModule):
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
        super().__init__()
        if not val_size:  # an empty loader would make Lightning warn; this makes it see none
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.batch_size, self.val_size, self.test_size = batch_size, val_size, test_size
        self.seed, self.num_workers = seed, num_workers
        self._sets: dict[str, TensorDataset] = {}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return 1, 8, 8

    def setup(self, stage: str | None = None) -> None:
        """Load and split once; ``stage`` does not matter for a set this small."""
        if self._sets:
            return
        from sklearn.datasets import load_digits  # optional dependency: imported where it is used

        bunch = load_digits()
        images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16.0).unsqueeze(1)
        labels = np.asarray(bunch.target, dtype=np.int64)
        rest, test = stratified_split(labels, self.test_size, self.seed)
        kept, val = stratified_split(labels[rest], self.val_size, self.seed + 1)
        for name, index in (("train", rest[kept]), ("val", rest[val]), ("test", test)):
            self._sets[name] = TensorDataset(images[index], torch.from_numpy(labels[index]))

    def _loader(self, name: str, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._sets[name], self.batch_size, shuffle=shuffle, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled training batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        """Validation batches. With ``val_size`` 0 the module has no validation loader, as if this were not here."""
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Test batches."""
        return self._loader("test", shuffle=False)

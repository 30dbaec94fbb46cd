"""Data modules whose parts are arrays: everything but the arrays themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_dp.data.card import DataCard
from lightning_dp.errors import PrivacyConfigError

__all__ = ("ArrayDataModule", "ArrayDataset")


class ArrayDataset(TensorDataset):
    """Samples ``(columns[0][i], columns[1][i], ...)``, and whose each sample is. ``tensors`` holds the columns.

    Args:
        columns: Arrays with the samples along axis 0.
        unit_id: The owner of each sample (patient, site, warp), int64 ``(n,)``; None: each sample stands for itself. A
            strategy with ``unit="unit_id"`` then protects owners.

    Raises:
        PrivacyConfigError: The columns differ in length.
    """

    def __init__(self, columns: Sequence[NDArray[Any]], unit_id: NDArray[np.int64] | None = None) -> None:
        every = [*columns, *([] if unit_id is None else [unit_id])]
        lengths = [len(column) for column in every]
        if len(set(lengths)) != 1:
            raise PrivacyConfigError(
                f"columns of different lengths, {lengths}: sample i is row i of each, so that they must agree."
            )
        super().__init__(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))
        self.unit_id = unit_id

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self.tensors)


class ArrayDataModule(LightningDataModule):
    """Base of data modules that read, or generate once, arrays for the parts ``train``, ``val`` and ``test``.

    A subclass gives ``card``, :meth:`arrays` and :attr:`columns`. The train loader is an ordinary shuffling DataLoader; a
    private strategy replaces its sampler by its own.

    Args:
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B.
        eval_batch_size: Batch size of the validation and test loaders.
        num_workers: Worker processes of the loaders.
        has_validation: Whether there is a part ``val``. It has to be known before the arrays are.
    """

    #: Of the class; a module that reads a folder of the user's has one of its own, since those data are real.
    card: DataCard
    #: Names of a sample's arrays in the order in which a batch has them.
    columns: tuple[str, ...] = ("inputs", "labels")

    def __init__(
        self, batch_size: int, eval_batch_size: int = 256, num_workers: int = 0, has_validation: bool = True
    ) -> None:
        super().__init__()
        if not has_validation:  # an empty loader would make Lightning warn; this makes it see none
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self._sets: dict[str, ArrayDataset] = {}

    @abstractmethod
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """All arrays, named ``"train/inputs"``, ``"test/labels"``, ``"train/unit_id"`` (optional) and so on.

        Called in `prepare_data` of one process a machine, where it may take its time and fill a cache, and then in `setup`
        of every process, where it should be quick. It must give every process the same.
        """

    def prepare_data(self) -> None:
        """Make the arrays once, so that `setup` finds them in the cache."""
        self.arrays()

    def setup(self, stage: str | None = None) -> None:
        """Take the parts; the stage does not matter."""
        if not self._sets:
            self._take(self.arrays())

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Make the data sets of all parts that the arrays name."""
        for part in ("train", "val", "test"):
            if f"{part}/{self.columns[0]}" in arrays:
                columns = [arrays[f"{part}/{name}"] for name in self.columns]
                self._sets[part] = self.dataset(part, columns, arrays.get(f"{part}/unit_id"))

    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> ArrayDataset:
        """The data set of one part; override it for random transforms."""
        return ArrayDataset(columns, unit_id)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled training batches."""
        return DataLoader(self._part_set("train"), self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Validation batches. Without a validation part the module has no such loader, as if this were not here."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Test batches."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, part: str) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self._part_set(part), self.eval_batch_size, shuffle=False, num_workers=self.num_workers)

    def _part_set(self, part: str) -> ArrayDataset:
        found = self._sets.get(part)
        if found is None:
            raise PrivacyConfigError(
                f"{type(self).__name__} has no samples in its part {part!r}: give the part a size above 0, or do not ask for "
                "its loader. Outside a Trainer call prepare_data() and setup() first."
            )
        return found

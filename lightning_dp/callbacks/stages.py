"""From Lightning's hooks of validation and test to three steps of a callback that listens to both alike."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

__all__ = ("Stage", "StageListener")

Stage = Literal["val", "test"]


class StageListener(Callback):
    """A callback that does the same in validation and in test: begins, hears every batch, ends."""

    @abstractmethod
    def _start(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """A stage begins; one before may have been broken off."""

    @abstractmethod
    def _listen(
        self,
        trainer: Trainer,
        module: LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """A batch of it has gone through the module."""

    @abstractmethod
    def _finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """It ends; here numbers may be logged."""

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._listen(trainer, pl_module, "val", outputs, batch, batch_idx, dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._listen(trainer, pl_module, "test", outputs, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

"""Training of a segmentation network on images or volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.metrics.segmentation import SegmentationDice
from lightning_dp.models.losses import dice_cross_entropy, dice_loss
from lightning_dp.tasks.optimisation import Optimisation, OptimizerName, ScheduleName

__all__ = ("SegmentationTask",)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dice": dice_loss, "dice_ce": dice_cross_entropy}


class SegmentationTask(LightningModule):
    """Dice training of a network on batches ``(images, masks)`` or ``(images, masks, volumes)``.

    The loss is the mean over the batch of each sample's own loss: no sum runs over several samples. As in
    :class:`~lightning_dp.tasks.ClassificationTask` training losses are **not** logged, since no noise protects them.

    Args:
        network: maps ``(N, C, *sides)`` to logits ``(N, K, *sides)``; K = 1 is foreground against background.
        loss: ``"dice"``, or ``"dice_ce"`` for Dice plus cross-entropy.
        lr: learning rate (peak, if scheduled).
        momentum: momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``.
        lr_schedule: ``"constant"``, ``"cosine"`` or ``"log_linear"``, see
            :class:`~lightning_dp.tasks.optimisation.Optimisation`.
        num_classes: number of classes with the background: K, or 2 where K = 1.

    Shape:
        Images float ``(N, C, *sides)``, masks int64 ``(N, *sides)``, volumes int64 ``(N,)``: the volume of each slice.

    Logs:
        ``val/dice``, ``test/dice``: mean over samples and classes; ``val/dice_volume``, ``test/dice_volume``: over volumes,
        which are the samples where batches name none; ``val/loss``, ``test/loss``. Publish them only for data that may be
        public.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Literal["dice", "dice_ce"] = "dice_ce",
        lr: float = 1e-3,
        momentum: float = 0.9,
        optimizer: OptimizerName = "adam",
        lr_schedule: ScheduleName = "constant",
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise PrivacyConfigError(f"loss={loss!r} is unknown; choose 'dice' or 'dice_ce'.")
        self.optimisation = Optimisation(lr, momentum, optimizer, lr_schedule)
        self.save_hyperparameters(ignore=["network"])
        self.network, self.num_classes = network, num_classes
        self.sample_losses = LOSSES[loss]
        self.val_dice, self.test_dice = SegmentationDice(num_classes), SegmentationDice(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images' pixels."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean of the samples' own losses; logs nothing, see the class."""
        images, masks = batch[:2]
        return self.sample_losses(self._fitting(self(images)), masks).mean()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Counts the masks of a validation batch."""
        self._evaluate(batch, "val", self.val_dice)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Counts the masks of a test batch."""
        self._evaluate(batch, "test", self.test_dice)

    def on_validation_epoch_end(self) -> None:
        """Logs the Dice of all validation data."""
        self._log_dice("val", self.val_dice)

    def on_test_epoch_end(self) -> None:
        """Logs the Dice of all test data."""
        self._log_dice("test", self.test_dice)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The class of each pixel, int64 ``(N, *sides)``, whether or not masks come with the images."""
        return self.masks(self(batch[0] if isinstance(batch, (tuple, list)) else batch))

    @staticmethod
    def masks(logits: Tensor) -> Tensor:
        """The class of each pixel, int64 ``(N, *sides)``."""
        return (logits.squeeze(1) > 0).long() if logits.shape[1] == 1 else logits.argmax(1)

    def _fitting(self, logits: Tensor) -> Tensor:
        if logits.shape[1] != self.num_classes and (logits.shape[1], self.num_classes) != (1, 2):
            raise ValueError(
                f"the network gives {logits.shape[1]} channels of logits, and the task has num_classes={self.num_classes} with "
                "the background: give both the same number, or one output for two classes."
            )
        return logits

    def _evaluate(self, batch: Sequence[Tensor], part: str, metric: SegmentationDice) -> None:
        images, masks = batch[:2]
        logits = self._fitting(self(images))
        metric.update(self.masks(logits), masks, batch[2] if len(batch) > 2 else None)
        loss = self.sample_losses(logits, masks).mean()
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(masks), sync_dist=True)

    def _log_dice(self, part: str, metric: SegmentationDice) -> None:
        self.log_dict({f"{part}/{name}": value for name, value in metric.compute().items()}, prog_bar=True)
        metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a schedule stepped after every logical step if one was asked for."""
        return self.optimisation.of(self)

"""A LightningModule for classification, used by the recipes; an ordinary one, with nothing private about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_dp.tasks.optimisation import Optimisation, OptimizerName, ScheduleName

__all__ = ("ClassificationTask",)


class ClassificationTask(LightningModule):
    """Cross-entropy training of a network on batches ``(inputs, labels)``, with accuracy on validation and test data.

    Validation and test steps return ``{"logits": ..., "target": ...}``, which is what the monitors read; a third item of the
    batch is passed on to them as ``"groups"`` and is otherwise unused.

    Training loss and training accuracy are **not** logged. They are functions of the private records that no noise
    protects; a log file, a progress bar or a sweep that shows them is a release outside the accounted eps. Validation
    and test numbers protect nobody either: publish them only for data that may be public.

    Args:
        network: Maps ``(N, ...)`` inputs to ``(N, num_classes)`` logits.
        lr: Learning rate (peak, if scheduled).
        momentum: Momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``; each sees only the private gradient.
        lr_schedule: ``"constant"``, ``"cosine"`` from ``lr`` to 0 over the planned steps, or ``"log_linear"``, see
            :class:`~lightning_dp.tasks.optimisation.Optimisation`.
        num_classes: Number of classes.

    Logs:
        ``val/accuracy``, ``val/loss``, ``test/accuracy``, ``test/loss``: once an epoch, over all samples (micro
        average).
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 1.0,
        momentum: float = 0.9,
        optimizer: OptimizerName = "sgd",
        lr_schedule: ScheduleName = "constant",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.optimisation = Optimisation(lr, momentum, optimizer, lr_schedule)
        self.save_hyperparameters(ignore=["network"])
        self.network, self.num_classes = network, num_classes
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @property
    def backbone(self) -> nn.Module:
        """The network's own ``backbone``, which Lightning's ``BackboneFinetuning`` freezes at first; not all have one."""
        return self.network.backbone  # type: ignore[return-value]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the inputs."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch; logs nothing, see the class."""
        inputs, labels = batch[:2]
        return self._loss(self(inputs), labels)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log accuracy and loss on validation data; returns what monitors read."""
        return self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log accuracy and loss on test data; returns what monitors read."""
        return self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities of the inputs, whether or not labels come with them."""
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        probabilities: Tensor = self(inputs).softmax(-1)
        return probabilities

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network gives {tuple(logits.shape)} for {len(labels)} samples, and the task has num_classes="
                f"{self.num_classes}: logits (N, {self.num_classes}) are needed. Give network and task the same number of "
                "classes."
            )
        if labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"the labels have the shape {tuple(labels.shape)} and the type {labels.dtype}: one class number of each "
                "sample, int64 (N,), is needed. Where several labels may hold at once use MultiLabelTask."
            )
        try:
            return F.cross_entropy(logits, labels)
        except IndexError as error:
            raise ValueError(
                f"a label is outside 0 .. {self.num_classes - 1} ({error}): give network and task num_classes= the number of "
                "classes of the data, which count from 0."
            ) from error

    def _evaluate(self, batch: Sequence[Tensor], part: str, accuracy: MulticlassAccuracy) -> dict[str, Any]:
        inputs, labels = batch[:2]
        logits = self(inputs)
        loss = self._loss(logits, labels)
        accuracy(logits, labels)
        self.log(f"{part}/accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        self.log(
            f"{part}/loss",
            loss,
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=True,
        )
        found: dict[str, Any] = {"logits": logits, "target": labels}
        return {**found, "groups": batch[2]} if len(batch) > 2 else found

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a schedule stepped after every logical step if one was asked for."""
        return self.optimisation.of(self)

"""Training of a network that answers several yes-or-no questions about a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAccuracy
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.tasks.classification import ClassificationTask
from lightning_dp.tasks.optimisation import OptimizerName, ScheduleName

__all__ = ("MultiLabelTask",)


class MultiLabelTask(ClassificationTask):
    """Binary cross-entropy of each label, on batches ``(inputs, labels)`` with labels of 0 and 1.

    Validation and test steps return ``{"logits": ..., "target": ...}``, which is what the monitors read; a third item of the
    batch is passed on to them as ``"groups"``. Nothing of the training data is logged, see
    :class:`~lightning_dp.tasks.ClassificationTask`.

    Args:
        network: maps ``(N, ...)`` inputs to logits ``(N, num_labels)``.
        num_labels: number of labels.
        pos_weight: weight of each label's positives. **Give public constants**: the usual (N - n_c) / n_c counts labels of the
            training data, which is a release that no eps accounts for. ``None`` weighs all alike.
        lr: learning rate (peak, if scheduled).
        momentum: momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``; each sees only the private gradient.
        lr_schedule: ``"constant"``, ``"cosine"`` from ``lr`` to 0 over the planned steps, or ``"log_linear"``, see
            :class:`~lightning_dp.tasks.optimisation.Optimisation`.

    Logs:
        ``val/accuracy``, ``val/loss``, ``test/accuracy``, ``test/loss``: once an epoch, over all samples and labels.

    Raises:
        PrivacyConfigError: for weights that are not positive, or not one for each label.
        ValueError: in a step, for labels of another shape than the logits.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        num_labels: int,
        pos_weight: Sequence[float] | None = None,
        lr: float = 1.0,
        momentum: float = 0.9,
        optimizer: OptimizerName = "sgd",
        lr_schedule: ScheduleName = "constant",
    ) -> None:
        super().__init__(network, lr, momentum, optimizer, lr_schedule)
        if pos_weight is not None and (len(pos_weight) != num_labels or min(pos_weight) <= 0):
            raise PrivacyConfigError(
                f"pos_weight={list(pos_weight)} must be {num_labels} positive numbers, one for each label."
            )
        del self.val_accuracy, self.test_accuracy  # those of classes
        weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", weight, persistent=False)
        self.val_share = MultilabelAccuracy(num_labels, average="micro")  # of right labels
        self.test_share = MultilabelAccuracy(num_labels, average="micro")

    @override
    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean of the samples' losses; logs nothing."""
        inputs, labels = batch[:2]
        return self._loss(self(inputs), labels)

    @override
    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log accuracy and loss on validation data; returns what monitors read."""
        return self._measure(batch, "val")

    @override
    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log accuracy and loss on test data; returns what monitors read."""
        return self._measure(batch, "test")

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of the labels, whether or not labels come with the inputs."""
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        probabilities: Tensor = self(inputs).sigmoid()
        return probabilities

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape != labels.shape:
            raise ValueError(
                f"the labels have the shape {tuple(labels.shape)} and the logits {tuple(logits.shape)}: a label of 0 or 1 is "
                "needed for each logit. Give the network as many outputs as there are labels; for class numbers use "
                "ClassificationTask."
            )
        return F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=self.pos_weight)

    def _measure(self, batch: Sequence[Tensor], part: str) -> dict[str, Any]:
        inputs, labels = batch[:2]
        logits = self(inputs)
        loss = self._loss(logits, labels)
        accuracy = self.val_share if part == "val" else self.test_share
        accuracy.update(logits, labels.long())
        self.log(f"{part}/accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        found: dict[str, Any] = {"logits": logits, "target": labels}
        return {**found, "groups": batch[2]} if len(batch) > 2 else found

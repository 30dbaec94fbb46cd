"""Training of an object detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.metrics import ObjectCountArea
from lightning_dp.models.detection import PADDING, AnchorFreeDetector, Detections, decode, detection_loss
from lightning_dp.optional import require
from lightning_dp.tasks.optimisation import Optimisation, OptimizerName, ScheduleName

__all__ = ("DetectionTask",)


class DetectionTask(LightningModule):
    """Training of an anchor-free detector on batches ``(images, boxes, labels)`` or ``(images, boxes, labels, groups)``.

    The loss is the mean over the batch of each image's own loss, which is divided by a public constant and not by the batch's
    number of objects: see :func:`~lightning_dp.models.detection.detection_loss`. One image is one privacy unit. As in
    :class:`~lightning_dp.tasks.ClassificationTask` training losses are **not** logged, since no noise protects them.

    Args:
        network: The detector; it knows its classes and its stride.
        lr: Learning rate (peak, if scheduled).
        momentum: Momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``.
        lr_schedule: ``"constant"``, ``"cosine"`` or ``"log_linear"``, see
            :class:`~lightning_dp.tasks.optimisation.Optimisation`.
        radius: Cells around a box's centre that answer for it.
        expected_positives: Public constant in place of the number of cells with an object.
        box_weight: Weight of the boxes' part of the loss.
        score_threshold: Lowest score of a detection that is evaluated or predicted.
        iou_threshold: Overlap above which of two detections the less certain one goes.
        class_agnostic: Whether it goes for another class's sake too.
        group_names: What the numbers 0, 1, ... of a batch's fourth item stand for (day and night); evaluated apart.

    Shape:
        Images float ``(N, C, H, W)``; boxes float ``(N, M, 4)``, x1, y1, x2, y2 in pixels; labels int64 ``(N, M)``, -1 where
        nothing is; groups int64 ``(N,)``.

    Logs:
        ``test/map_50`` (mean average precision at IoU 0.5, by torchmetrics), ``test/count_area`` (the Oktoberfest data set's
        count measure, which is no mAP), each again for a group as ``test/map_50/night``; ``test/loss``. For validation
        likewise. Publish them only for data that may be public.

    Raises:
        ModuleNotFoundError: torchvision or pycocotools is not installed; both come with ``lightning-dp[recipes]``.
    """

    def __init__(
        self,
        network: AnchorFreeDetector,
        lr: float = 1e-3,
        momentum: float = 0.9,
        optimizer: OptimizerName = "adam",
        lr_schedule: ScheduleName = "constant",
        radius: float = 1.0,
        expected_positives: float = 4.0,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        class_agnostic: bool = False,
        group_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(network, AnchorFreeDetector):
            raise PrivacyConfigError(
                f"network is a {type(network).__name__}; DetectionTask trains an AnchorFreeDetector, whose grid its loss knows."
            )
        self.optimisation = Optimisation(lr, momentum, optimizer, lr_schedule)
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.radius, self.expected_positives, self.box_weight = radius, expected_positives, box_weight
        self.score_threshold, self.iou_threshold, self.class_agnostic = score_threshold, iou_threshold, class_agnostic
        self.group_names = tuple(group_names)
        self.val_metrics, self.test_metrics = self._metrics(), self._metrics()

    def _metrics(self) -> nn.ModuleDict:
        """For each measure and group one metric; the group without a name is everything."""
        require("torchvision", "recipes", "Mean average precision")
        require("pycocotools", "recipes", "Mean average precision")
        from torchmetrics.detection import MeanAveragePrecision

        found = nn.ModuleDict()
        for group in ("", *(f"/{name}" for name in self.group_names)):
            found[f"map_50{group}"] = MeanAveragePrecision(iou_thresholds=[0.5])
            found[f"count_area{group}"] = ObjectCountArea(self.network.num_classes)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits and boxes of the grid's cells."""
        outputs: Tensor = self.network(images)
        return outputs

    def losses(self, outputs: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, ``(N,)``."""
        return detection_loss(
            outputs, boxes, labels, self.network.stride, self.radius, self.expected_positives, self.box_weight
        )

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean of the images' own losses; logs nothing, see the class."""
        images, boxes, labels = batch[:3]
        return self.losses(self(images), boxes, labels).mean()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Evaluate a validation batch."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Evaluate a test batch."""
        self._evaluate(batch, "test", self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured on all validation data."""
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what was measured on all test data."""
        self._log("test", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> list[Detections]:
        """The objects of each image, whether or not boxes come with them."""
        return self.detect(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def detect(self, images: Tensor) -> list[Detections]:
        """The objects of each image, most certain first."""
        return self._decode(self(images))

    def _decode(self, outputs: Tensor) -> list[Detections]:
        return decode(
            outputs, self.network.stride, self.score_threshold, self.iou_threshold, class_agnostic=self.class_agnostic
        )

    def _evaluate(self, batch: Sequence[Tensor], part: str, metrics: nn.ModuleDict) -> None:
        images, boxes, labels = batch[:3]
        outputs = self(images)
        preds: list[Mapping[str, Tensor]] = [found._asdict() for found in self._decode(outputs)]
        there = labels != PADDING
        target = [
            {"boxes": box[kept], "labels": label[kept]} for box, label, kept in zip(boxes, labels, there, strict=True)
        ]
        parts: dict[str, Sequence[int]] = {"": range(len(images))}
        for number, name in enumerate(self.group_names):
            if len(batch) < 4:
                raise PrivacyConfigError(
                    f"group_names={self.group_names} names groups, but batches have no fourth item with their numbers."
                )
            parts[f"/{name}"] = (batch[3] == number).nonzero()[:, 0].tolist()
        for name, metric in metrics.items():
            chosen = parts[name[name.find("/") :] if "/" in name else ""]
            assert isinstance(metric, Metric)
            metric.update([preds[i] for i in chosen], [target[i] for i in chosen])
        loss = self.losses(outputs, boxes, labels).mean()
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)

    def _log(self, part: str, metrics: nn.ModuleDict) -> None:
        for name, metric in metrics.items():
            assert isinstance(metric, Metric)
            value = metric.compute()
            value = value["map_50"] if isinstance(value, dict) else value
            self.log(
                f"{part}/{name}", torch.as_tensor(value, dtype=torch.float32).to(self.device), prog_bar="/" not in name
            )
            metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a schedule stepped after every logical step if one was asked for."""
        return self.optimisation.of(self)

"""A LightningModule for regression of several numbers at once, used by the recipes; nothing in it is private."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanAbsoluteError, PearsonCorrCoef, R2Score

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.tasks.optimisation import Optimisation, OptimizerName, ScheduleName

__all__ = ("RegressionTask",)


class RegressionTask(LightningModule):
    """Squared-error training of a network on ``(inputs, targets)`` or on graphs with ``y``; R2, mean absolute error, Pearson.

    The network predicts ``(target - centre) / scale``; predictions and metrics are in the targets' own units. Centre and scale
    must be **public constants**, such as published norms or round guesses. Mean and deviation of the training targets are
    functions of private records and belong to no eps; the batch's own would couple its samples besides.

    Training loss is not logged, and validation and test numbers protect nobody: see `ClassificationTask`.

    Args:
        network: Maps a batch's inputs, or the graph batch itself, to ``(N, targets)``.
        targets: Names of the targets, for the logs.
        centre: Public constant taken off each target, in its unit.
        scale: Public constant each target is then divided by.
        lr: Learning rate (peak, if scheduled).
        momentum: Momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``.
        lr_schedule: a name of :class:`~lightning_dp.tasks.optimisation.Optimisation`.

    Logs:
        ``val/r2_<target>``, ``val/mae_<target>``, ``val/pearson_<target>``, and the same for ``test``: once an epoch, over all
        samples. R2 and Pearson's r are left out of a part with fewer than two samples.

    Raises:
        PrivacyConfigError: Constants that do not fit the targets, or an unknown optimizer or schedule; in use, targets of
            another shape than the predictions, which would otherwise be broadcast.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        targets: Sequence[str] = ("target",),
        centre: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
        lr: float = 1e-3,
        momentum: float = 0.9,
        optimizer: OptimizerName = "adam",
        lr_schedule: ScheduleName = "constant",
    ) -> None:
        super().__init__()
        if not len(targets) == len(centre) == len(scale) or any(value <= 0 for value in scale):
            raise PrivacyConfigError(
                f"targets {tuple(targets)} with centre {tuple(centre)} and scale {tuple(scale)}: give each target one public "
                "centre and one public positive scale."
            )
        self.save_hyperparameters(ignore=["network"])
        self.network, self.targets = network, tuple(targets)
        self.register_buffer("centre", torch.tensor(tuple(centre), dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(tuple(scale), dtype=torch.float32), persistent=False)
        self.optimisation = Optimisation(lr, momentum, optimizer, lr_schedule)
        self.val_metrics, self.test_metrics = _metrics(len(targets)), _metrics(len(targets))

    def forward(self, inputs: Any) -> Tensor:
        """Predictions ``(N, targets)`` in the targets' units."""
        scaled: Tensor = self.network(inputs)
        return scaled * self.scale + self.centre

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean over samples of the mean squared error of the scaled targets; logs nothing, see the class."""
        inputs, targets = _parts(batch)
        errors = (self._fitting(self(inputs), targets) - targets) / self.scale
        return errors.square().mean(1).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics of validation data; returns ``{"prediction", "target"}``."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics of test data; returns ``{"prediction", "target"}``."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predictions in the targets' units."""
        predictions: Tensor = self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        return predictions

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation samples."""
        self._log(self.val_metrics, "val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all test samples."""
        self._log(self.test_metrics, "test")

    def _evaluate(self, batch: Any, metrics: MetricCollection) -> dict[str, Tensor]:
        inputs, targets = _parts(batch)
        predictions = self._fitting(self(inputs), targets)
        metrics.update(predictions, targets)
        return {"prediction": predictions, "target": targets}

    def _fitting(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if predictions.shape != targets.shape or predictions.shape[-1] != len(self.targets):
            raise PrivacyConfigError(
                f"predictions {tuple(predictions.shape)} for targets {tuple(targets.shape)} and the names {self.targets}: both "
                f"have to be (N, {len(self.targets)}). Let the network have as many outputs as there are targets."
            )
        return predictions

    def _log(self, metrics: MetricCollection, part: str) -> None:
        found = {"mae": metrics["mae"].compute()}
        with suppress(ValueError):  # of R2, for fewer than two samples on all processes together
            found |= {"r2": metrics["r2"].compute(), "pearson": metrics["pearson"].compute()}
        for name, values in found.items():
            for target, value in zip(self.targets, values.reshape(-1), strict=True):
                self.log(f"{part}/{name}_{target}", value, prog_bar=name == "r2")
        metrics.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a schedule stepped after every logical step if one was asked for."""
        return self.optimisation.of(self)


def _metrics(count: int) -> MetricCollection:
    return MetricCollection(
        {
            "r2": R2Score(multioutput="raw_values"),
            "mae": MeanAbsoluteError(num_outputs=count),
            "pearson": PearsonCorrCoef(num_outputs=count),
        },
        compute_groups=False,
    )


def _parts(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a pair, or a graph batch and its ``y``."""
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1]
    return batch, batch.y

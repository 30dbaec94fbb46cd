"""The calibration of one iterate beside that of the posterior, on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from typing_extensions import override

from lightning_dp.callbacks.stages import Stage, StageListener
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.posterior import PosteriorPredictor, PosteriorSamples, class_log_probabilities

__all__ = ("PosteriorCalibration", "PosteriorStrategy")


@runtime_checkable
class PosteriorStrategy(Protocol):
    """A strategy that keeps posterior samples."""

    @property
    def posterior(self) -> PosteriorSamples:
        """The samples kept so far."""
        ...

    def predictor(self) -> PosteriorPredictor:
        """Averages over them."""
        ...


class PosteriorCalibration(StageListener):
    """Logs how well calibrated the last iterate is and, beside it, the average over the posterior samples.

    On validation and test data, once an epoch: ``val/last_ece``, ``val/last_nll``, ``val/last_accuracy`` and the same with
    ``posterior`` for ``last``; ``test/...`` likewise. ECE is the expected calibration error over bins of equal width
    (torchmetrics' ``MulticlassCalibrationError``, l1), NLL the mean negative log-likelihood in nats. It computes the
    predictions itself, so that it needs nothing of ``validation_step`` and ``test_step``, at the cost of their forward
    pass and of one for each sample. Before the first sample, and beside any strategy that keeps none, the last iterate
    alone is logged.

    Numbers of held-out data are not covered by the eps of the training data.

    Args:
        n_bins: number of bins of the ECE.
        inputs_and_labels: from a batch to the module's input and its integer labels ``(N,)``; ``None``: a batch is that
            pair.
        averaging_during_fit: whether validation during ``fit`` averages too, which costs a forward pass for each sample.

    Raises:
        PrivacyConfigError: for batches that are no pair, with ``inputs_and_labels=None``, and for a module that does not
            return logits of several classes.
    """

    def __init__(
        self,
        n_bins: int = 15,
        inputs_and_labels: Callable[[Any], tuple[Any, Tensor]] | None = None,
        averaging_during_fit: bool = False,
    ) -> None:
        self.n_bins, self.inputs_and_labels = n_bins, inputs_and_labels
        self.averaging_during_fit = averaging_during_fit
        self._metrics: dict[str, dict[str, Metric]] = {}

    @override
    def _start(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        self._metrics = {}

    @override
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
        averaging = stage == "test" or self.averaging_during_fit or trainer.state.fn != TrainerFn.FITTING
        self._observe(trainer, module, batch, averaging)

    @override
    def _finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        for name, metrics in self._metrics.items():
            for key, metric in metrics.items():  # computing sums over the ranks
                self.log(f"{stage}/{name}_{key}", metric.compute(), rank_zero_only=False)  # type: ignore[attr-defined]
        self._metrics = {}

    @torch.no_grad()
    def _observe(self, trainer: Trainer, module: LightningModule, batch: Any, averaging: bool) -> None:
        inputs, labels = self._pair(batch)
        strategy, predictor = trainer.strategy, None
        network: nn.Module = module
        if isinstance(strategy, PosteriorStrategy) and len(strategy.posterior):
            predictor = strategy.predictor()
            if predictor.output != "softmax":
                raise PrivacyConfigError(
                    f"PosteriorCalibration bins the confidence of one class of several, and the module's output is "
                    f"{predictor.output!r}. Leave it out."
                )
            network = predictor.module
        with trainer.precision_plugin.forward_context():
            logs = {"last": class_log_probabilities(network(inputs))}
            if predictor is not None and averaging:
                logs["posterior"] = predictor.averaged(inputs)
        for name, log_probabilities in logs.items():
            metrics = self._metrics.setdefault(name, _metrics(log_probabilities.shape[1], self.n_bins, module.device))
            probabilities = log_probabilities.exp()
            metrics["ece"].update(probabilities, labels)
            metrics["accuracy"].update(probabilities, labels)
            metrics["nll"].update(F.nll_loss(log_probabilities, labels, reduction="none"))

    def _pair(self, batch: Any) -> tuple[Any, Tensor]:
        if self.inputs_and_labels is not None:
            return self.inputs_and_labels(batch)
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
            return batch[0], batch[1]
        raise PrivacyConfigError(
            f"PosteriorCalibration found a batch that is no pair of inputs and labels ({type(batch).__name__}). Give "
            "inputs_and_labels, a function that takes the two from a batch."
        )


def _metrics(num_classes: int, n_bins: int, device: torch.device) -> dict[str, Metric]:
    made: dict[str, Metric] = {
        "ece": MulticlassCalibrationError(num_classes, n_bins, "l1"),
        "nll": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
    }
    return {name: metric.to(device) for name, metric in made.items()}

"""Training of a binary classifier on a transferred encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.transfer import EncoderClassifier
from lightning_dp.tasks.optimisation import Optimisation, OptimizerName, ScheduleName

__all__ = ("ResponseTask",)


class ResponseTask(LightningModule):
    """Cross-entropy training of an :class:`~lightning_dp.models.EncoderClassifier` on batches ``(images, labels)``.

    With a reconstruction head the loss is ``L_cls + reconstruction_weight * L_rec``, both means over samples of each sample's
    own loss. Classes are not weighted: weights from their counts would be a statistic of private labels. As in
    :class:`~lightning_dp.tasks.ClassificationTask` training losses are **not** logged.

    Args:
        network: with two classes.
        lr: learning rate (peak, if scheduled).
        encoder_lr_factor: the encoder is trained at this multiple of it; 0 freezes it. Frozen parameters get no noise.
        reconstruction_weight: lambda of the reconstruction's mean squared error.
        momentum: momentum of SGD, or beta1 of Adam and NAdam.
        optimizer: ``"sgd"``, ``"adam"`` or ``"nadam"``.
        lr_schedule: ``"constant"``, ``"cosine"`` or ``"log_linear"``.

    Logs:
        ``val/auroc``, ``test/auroc``: over all samples. Publish them only for data that may be public.

    Raises:
        PrivacyConfigError: for a negative factor or weight, or other than two classes.
    """

    def __init__(
        self,
        network: EncoderClassifier,
        lr: float = 1e-3,
        encoder_lr_factor: float = 1.0,
        reconstruction_weight: float = 1.0,
        momentum: float = 0.9,
        optimizer: OptimizerName = "adam",
        lr_schedule: ScheduleName = "constant",
    ) -> None:
        super().__init__()
        if encoder_lr_factor < 0 or reconstruction_weight < 0 or network.head.out_features != 2:
            raise PrivacyConfigError(
                f"encoder_lr_factor={encoder_lr_factor}, reconstruction_weight={reconstruction_weight}, "
                f"{network.head.out_features} classes: the first two are at least 0, and a response has two classes."
            )
        self.optimisation = Optimisation(lr, momentum, optimizer, lr_schedule)
        self.save_hyperparameters(ignore=["network"])
        self.network, self.reconstruction_weight = network, reconstruction_weight
        self.encoder_lr_factor = encoder_lr_factor
        if encoder_lr_factor == 0:
            network.encoder.requires_grad_(False)
        self.val_auroc, self.test_auroc = BinaryAUROC(), BinaryAUROC()

    @property
    def backbone(self) -> nn.Module:
        """The encoder, which Lightning's ``BackboneFinetuning`` freezes at first."""
        return self.network.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Logits, whatever the mode."""
        found = self.network(images)
        logits: Tensor = found[0] if isinstance(found, tuple) else found
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean of the samples' own losses; logs nothing, see the class."""
        images, labels = batch[:2]
        found = self.network(images)
        if not isinstance(found, tuple):
            return F.cross_entropy(found, labels)
        logits, rebuilt = found
        # Every sample has as many voxels, so that the mean over all of them is the mean of the samples' means.
        rebuilding = F.mse_loss(rebuilt, images[:, : rebuilt.shape[1]])
        return F.cross_entropy(logits, labels) + self.reconstruction_weight * rebuilding

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log the AUROC on validation data; returns what monitors read."""
        return self._evaluate(batch, "val", self.val_auroc)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> dict[str, Any]:
        """Update and log the AUROC on test data; returns what monitors read."""
        return self._evaluate(batch, "test", self.test_auroc)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of both classes, whether or not labels come with the images."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).softmax(-1)  # type: ignore[no-any-return]

    def _evaluate(self, batch: Sequence[Tensor], part: str, auroc: BinaryAUROC) -> dict[str, Any]:
        images, labels = batch[:2]
        logits = self(images)
        auroc.update(logits.softmax(-1)[:, 1], labels)
        self.log(f"{part}/auroc", auroc, on_step=False, on_epoch=True, prog_bar=True)
        return {"logits": logits, "target": labels}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with the encoder's parameters in a group of their own, if they are not frozen."""
        return self.optimisation.of(self, slow=self.network.encoder, factor=self.encoder_lr_factor)

"""Dice per sample and per volume, as a torchmetrics metric."""

from __future__ import annotations

import torch
import torchmetrics
from torch import Tensor
from typing_extensions import override

from lightning_dp.metrics.functional.dice import dice, dice_counts

__all__ = ("SegmentationDice",)


class SegmentationDice(torchmetrics.Metric):
    """Mean Dice over samples and over volumes, where the samples may be slices of volumes.

    A volume is whatever slices bear one id: their pixels are counted together before its Dice is formed, over all batches
    and ranks. What both the prediction and the target leave empty has a Dice of 1, see
    `lightning_dp.metrics.functional.dice`; torchmetrics' own ``DiceScore`` leaves such samples out of the mean, and knows
    no volumes.

    The state is a row of counts for each sample (a few numbers, no masks). With a distributed sampler that repeats samples
    to fill the ranks, the repeated ones count twice.

    Args:
        num_classes: number of classes, the background (class 0) included.
        smooth: s of the Dice.

    Example:
        >>> import torch
        >>> metric = SegmentationDice()
        >>> masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
        >>> metric.update(masks, masks, volumes=torch.tensor([7, 7]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'dice': 1.0, 'dice_volume': 1.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: Tensor

    def __init__(self, num_classes: int = 2, smooth: float = 1.0) -> None:
        super().__init__()
        if num_classes < 2 or smooth < 0:
            raise ValueError(f"num_classes={num_classes}, smooth={smooth}: give at least 2 and at least 0.")
        self.num_classes, self.smooth = num_classes, smooth
        # A tensor and not a list: a rank without a sample then brings no rows, and does not hang the others.
        empty = torch.zeros(0, 1 + 3 * (num_classes - 1), dtype=torch.float64)
        self.add_state("rows", default=empty, dist_reduce_fx="cat")

    @override
    def update(self, preds: Tensor, target: Tensor, volumes: Tensor | None = None) -> None:
        """Adds samples.

        Args:
            preds: ``(N, *sides)``, the predicted class of each pixel.
            target: ``(N, *sides)``, its true class.
            volumes: ``(N,)`` whole numbers >= 0, the volume of each sample; None: each sample is a volume.

        Raises:
            ValueError: for masks or ids that do not belong together.
        """
        counts = dice_counts(preds.detach(), target.detach(), self.num_classes)
        ids = torch.full((len(counts),), -1.0) if volumes is None else volumes.detach()
        if ids.shape != (len(counts),) or (volumes is not None and len(ids) and int(ids.min()) < 0):
            raise ValueError(
                f"volumes {tuple(ids.shape)} must be one whole number >= 0 for each of {len(counts)} samples."
            )
        rows = torch.cat([ids.double().unsqueeze(1).to(self.rows), counts.flatten(1).to(self.rows)], 1)
        self.rows = torch.cat([self.rows, rows])

    @override
    def compute(self) -> dict[str, Tensor]:
        """``dice``, the mean over samples and classes, and ``dice_volume``, that over volumes; nan without samples."""
        ids, counts = self.rows[:, 0], self.rows[:, 1:].reshape(-1, self.num_classes - 1, 3)
        named = ids >= 0
        _, owner = torch.unique(ids[named], return_inverse=True)
        volumes = counts.new_zeros(int(owner.max()) + 1 if len(owner) else 0, *counts.shape[1:])
        volumes.index_add_(0, owner, counts[named])
        volumes = torch.cat([volumes, counts[~named]])
        return {"dice": dice(counts, self.smooth).mean(), "dice_volume": dice(volumes, self.smooth).mean()}

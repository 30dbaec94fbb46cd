"""Dice of masks, of single samples."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ("dice", "dice_counts")


def dice_counts(preds: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """What the Dice of each sample is made of.

    Args:
        preds: ``(N, *sides)``, the predicted class of each pixel.
        target: ``(N, *sides)``, its true class.
        num_classes: number of classes, the background (class 0) included.

    Returns:
        float64 ``(N, num_classes - 1, 3)``: for each class but the background the pixels that both have, those of the
        prediction, and those of the target. Sums over the slices of a volume are the counts of the volume.

    Raises:
        ValueError: if the shapes differ, the values are no classes, or there are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: the background is one, so that there are two at least.")
    if preds.shape != target.shape or preds.dim() < 2:
        raise ValueError(
            f"predictions {tuple(preds.shape)} and target {tuple(target.shape)} do not belong together: both are "
            "(N, *sides), the class of each pixel. Take logits.argmax(1), or (logits > 0) for one foreground channel."
        )
    for name, values in (("predictions", preds), ("target", target)):
        if values.is_floating_point() or (
            values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes
        ):
            raise ValueError(
                f"the {name} must hold whole numbers from 0 to {num_classes - 1}, the class of each pixel."
            )
    found = []
    for k in range(1, num_classes):
        p, t = (preds == k).flatten(1), (target == k).flatten(1)
        found.append(torch.stack([(p & t).sum(1), p.sum(1), t.sum(1)], 1))
    return torch.stack(found, 1).double()


def dice(counts: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice, ``(2 |A and B| + s) / (|A| + |B| + s)``.

    Where neither the prediction nor the target has the class it is 1, with s = 0 too: nothing was to be found, and nothing
    was found. A mean over slices therefore rewards knowing where the organ is not.

    Args:
        counts: ``(..., 3)`` as from :func:`dice_counts`.
        smooth: s.

    Returns:
        ``(...)`` in [0, 1].
    """
    both, sizes = counts[..., 0], counts[..., 1] + counts[..., 2]
    return torch.where(sizes == 0, 1.0, (2 * both + smooth) / (sizes + smooth).clamp_min(1e-12))

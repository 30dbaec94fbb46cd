"""Segmentation losses of single samples. A Dice over a whole batch would couple its samples, and has no place here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ("dice_cross_entropy", "dice_loss", "soft_dice")


def soft_dice(logits: Tensor, target: Tensor, classes: Sequence[int] | None = None, smooth: float = 1.0) -> Tensor:
    """Soft Dice of every sample and class, ``(2 sum p y + s) / (sum p + sum y + s)``.

    The sums run over the pixels of **one** sample. Summed over the batch, as many implementations do, the loss of a sample
    would depend on who else was drawn, and clipping its gradient would bound nothing.

    Args:
        logits: ``(N, C, *sides)``. With C = 1 the foreground's, through a sigmoid; else one for each class, through a softmax.
        target: int64 ``(N, *sides)``, the class of each pixel; 0 and 1 where C = 1.
        classes: which classes' masks count; None: all but the background, class 0. With C = 1 it is always class 1.
        smooth: s. A class that is in neither the target nor the prediction has a Dice of 1.

    Returns:
        ``(N, K)`` in (0, 1], one column for each class that counts.

    Raises:
        ValueError: if the shapes do not belong together, or a class is not there.
    """
    _check(logits, target)
    if logits.shape[1] == 1:
        probabilities, masks = logits.sigmoid(), target.unsqueeze(1).to(logits.dtype)
    else:
        count = logits.shape[1]
        chosen = list(range(1, count)) if classes is None else list(classes)
        if not chosen or not set(chosen) <= set(range(count)):
            raise ValueError(f"classes={chosen}: name at least one of the {count} classes 0 to {count - 1}.")
        probabilities = logits.softmax(1)[:, chosen]
        masks = F.one_hot(target, count).movedim(-1, 1)[:, chosen].to(logits.dtype)
    probabilities, masks = probabilities.flatten(2), masks.flatten(2)
    shared = (probabilities * masks).sum(2)
    found: Tensor = (2 * shared + smooth) / (probabilities.sum(2) + masks.sum(2) + smooth)
    return found


def dice_loss(logits: Tensor, target: Tensor, classes: Sequence[int] | None = None, smooth: float = 1.0) -> Tensor:
    """One minus the mean of the classes' :func:`soft_dice`, of each sample: ``(N,)``. Average it over the batch yourself."""
    return 1 - soft_dice(logits, target, classes, smooth).mean(1)


def dice_cross_entropy(
    logits: Tensor, target: Tensor, classes: Sequence[int] | None = None, smooth: float = 1.0
) -> Tensor:
    """:func:`dice_loss` plus the cross-entropy averaged over the sample's own pixels, of each sample: ``(N,)``.

    Where no organ is, the Dice loss hardly has a gradient; the cross-entropy keeps one.
    """
    dice = dice_loss(logits, target, classes, smooth)
    if logits.shape[1] == 1:
        pixels = F.binary_cross_entropy_with_logits(logits.squeeze(1), target.to(logits.dtype), reduction="none")
    else:
        pixels = F.cross_entropy(logits, target, reduction="none")
    return dice + pixels.flatten(1).mean(1)


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.dim() < 3 or (logits.shape[0], *logits.shape[2:]) != tuple(target.shape):
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not belong together: expected (N, C, *sides) "
            "and (N, *sides). A target with a channel axis of 1 loses it by squeeze(1)."
        )
    if target.is_floating_point():
        raise ValueError(f"the target holds {target.dtype}: give the class of each pixel as int64 (target.long()).")
    if not target.numel():
        return
    # One wait for the device, and not four. It cannot be left out: with one channel other classes would train silently.
    low, high = torch.stack(target.aminmax()).tolist()
    classes = max(logits.shape[1], 2)
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"the target holds the classes {low} to {high}, and {logits.shape[1]} channels of logits know 0 to {classes - 1}: "
            "give the network one output for each class, background included, or join classes of the masks."
        )

"""The mechanism: clip each sample's vector, add noise, randomise its label. Pure functions and one source of chance."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dp.accounting import RandomizedResponseEvent
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import NoiseSource

__all__ = ("clip_rows", "privatise_rows", "randomise_labels")

#: Rounding to float32 may lengthen a vector by half a unit in the last place of each coordinate.
_ROUNDING = 1.0 - 2.0**-22


def clip_rows(rows: Tensor, bound: float) -> Tensor:
    """Each row scaled down to a norm of at most ``bound``; a row that is not finite becomes zero.

    **Guarantee**: ``||row|| <= bound`` for every row of the result, whatever the input: infinite, NaN, or so large that its
    squares overflow. A row's result depends on that row alone.

    Args:
        rows: ``(B, ...)``, floating point.
        bound: C > 0.

    Returns:
        Float32, of the same shape.

    Raises:
        PrivacyError: for complex rows: a conversion to real numbers would drop half of each without a word.
    """
    if rows.is_complex():
        raise PrivacyError(
            f"{rows.dtype} cannot be clipped for a release, which is of real numbers. Pass torch.view_as_real(z), whose rows "
            "have the same norms."
        )
    if not len(rows):
        return rows.float()
    flat = rows.flatten(1).double() if rows.dim() > 1 else rows.double()[:, None]
    finite = torch.isfinite(flat).all(1, keepdim=True)
    flat = torch.where(finite, flat, 0.0)
    largest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    unit = flat / largest  # of norm 1 or more, and without squares of large or tiny numbers
    scale = torch.minimum(largest, bound * _ROUNDING / unit.norm(dim=1, keepdim=True).clamp_min(1.0))
    clipped: Tensor = (unit * scale).float().view(rows.shape)
    return clipped


def privatise_rows(rows: Tensor, bound: float, noise_multiplier: float, noise: NoiseSource) -> Tensor:
    """Each row clipped to ``bound``, plus independent N(0, (noise_multiplier bound)^2) on every coordinate.

    **Guarantee**: the Gaussian mechanism on each row by itself, with L2 sensitivity ``2 bound`` when the row is replaced and
    ``bound`` against a zero row: what :func:`~lightning_dp.accounting.release_event` accounts.

    Args:
        rows: ``(B, ...)``.
        bound: C > 0.
        noise_multiplier: noise standard deviation over C.
        noise: whose generator nobody else reads.
    """
    return noise.add_(clip_rows(rows, bound).contiguous(), noise_multiplier * bound)


def randomise_labels(labels: Tensor, event: RandomizedResponseEvent, noise: NoiseSource) -> Tensor:
    """Each label kept with chance ``event.keep``, and else replaced by one of the other classes, uniformly.

    **Guarantee**: pure ``event.eps`` for each label.

    Args:
        labels: ``(B,)`` of whole numbers in [0, K).
        event: eps and K.
        noise: source of chance.

    Raises:
        PrivacyConfigError: if the labels are anything else.
    """
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PrivacyConfigError(
            f"labels='randomized' needs one whole number for each sample, and the labels have shape {tuple(labels.shape)} and "
            f"dtype {labels.dtype}: randomised response is defined on classes. Give class indices, or labels='public' if they "
            "are."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < event.num_classes:
        raise PrivacyConfigError(
            f"labels lie outside [0, {event.num_classes}): num_classes is the number of classes that there can be, known "
            "without looking at the data. Raise num_classes."
        )
    kept, which = noise.uniform(2 * len(labels)).chunk(2) if len(labels) else (torch.empty(0), torch.empty(0))
    others = 1 + (which * (event.num_classes - 1)).long().clamp(max=event.num_classes - 2)
    moved = (labels.cpu().long() + others) % event.num_classes
    return torch.where(kept < event.keep, labels.cpu().long(), moved).to(labels.dtype)

"""From a segmentation network to a classifier of what it segments: localise, copy the encoder, classify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.encoder_decoder import Encoder, EncoderDecoder, conv_transpose

__all__ = ("Crops", "EncoderClassifier", "copy_encoder", "foreground_box", "localise")

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Crops:
    """What was cut out of a batch.

    Args:
        images: ``(N, C, *size)``.
        masks: ``(N, *size)``, the same region of the masks, in [0, 1].
        boxes: first and last-but-one index along each axis, of each sample.
        empty: bool ``(N,)``: nothing was predicted, so that the crop is the centre. Count them.
    """

    images: Tensor
    masks: Tensor
    boxes: tuple[Box, ...]
    empty: Tensor


def foreground_box(mask: Tensor, margin: int = 2) -> Box | None:
    """The smallest box around all foreground, widened by ``margin`` on each side and cut off at the border.

    Args:
        mask: ``(*sides)``, the foreground is what is not 0.
        margin: in voxels.

    Returns:
        ``(start, stop)`` along each axis, or None for an empty mask.
    """
    found = mask.nonzero()
    if not len(found):
        return None
    low, high = found.amin(0) - margin, found.amax(0) + 1 + margin
    pairs = zip(low.tolist(), high.tolist(), mask.shape, strict=True)
    return tuple((max(start, 0), min(stop, side)) for start, stop, side in pairs)


def localise(images: Tensor, masks: Tensor, size: int | tuple[int, ...], margin: int = 2) -> Crops:
    """Cut each sample to the box around its mask and resample it to one size.

    Give the **predicted** mask, as the true one is not there when the model is used. Each crop depends on its own
    sample and mask alone; a mask predicted by a network depends on that network's training data too, whose guarantee is the
    network's.

    Args:
        images: ``(N, C, *sides)``, of two or three dimensions.
        masks: ``(N, *sides)``, the foreground is what is not 0. Where there is none the crop is a box of ``size`` at the
            centre, or all of a smaller image.
        size: of the crops, one number for all sides or one for each; sides are stretched to it, not kept in proportion.
        margin: voxels added to the box on each side.

    Returns:
        The crops, see :class:`Crops`.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    sides = tuple(images.shape[2:])
    size = (size,) * len(sides) if isinstance(size, int) else tuple(size)
    fit = len(sides) in (2, 3) and tuple(masks.shape) == (len(images), *sides) and len(size) == len(sides)
    if not fit or min(size) < 1 or margin < 0:
        raise ValueError(
            f"images {tuple(images.shape)}, masks {tuple(masks.shape)}, size {size} and margin {margin} do not belong "
            "together: expected (N, C, *sides), (N, *sides), one length of at least 1 for each side, and a margin from 0 on."
        )
    starts = [max((side - length) // 2, 0) for side, length in zip(sides, size, strict=True)]
    centre = tuple((a, min(a + k, n)) for a, k, n in zip(starts, size, sides, strict=True))
    found = [foreground_box(mask, margin) for mask in masks]
    boxes = tuple(centre if box is None else box for box in found)
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    both = torch.cat([images, (masks != 0).unsqueeze(1).to(images.dtype)], 1)
    regions = [(slice(None), *(slice(*pair) for pair in box)) for box in boxes]
    crops = [
        F.interpolate(sample[region][None], size, mode=mode, align_corners=False)
        for sample, region in zip(both, regions, strict=True)
    ]
    cut = torch.cat(crops) if crops else both.new_zeros(0, both.shape[1], *size)
    empty = torch.tensor([box is None for box in found], dtype=torch.bool, device=images.device)
    return Crops(cut[:, :-1], cut[:, -1], boxes, empty)


def copy_encoder(source: EncoderDecoder, target: EncoderClassifier) -> None:
    """Copy the weights of a segmentation network's encoder into a classifier's; all of them, or none.

    Raises:
        PrivacyConfigError: if the encoders do not have the same parameters of the same shapes; nothing is then copied. A
            partial copy would train from scratch what was meant to be transferred, and nobody would see it.
    """
    given, wanted = source.encoder.state_dict(), target.encoder.state_dict()
    differing = sorted(given.keys() ^ wanted.keys())
    differing += [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    if differing:
        raise PrivacyConfigError(
            f"the encoders differ in {len(differing)} tensors, such as {differing[0]}: build both networks with the same "
            "class, in_channels, filters, depth and dims."
        )
    target.encoder.load_state_dict(given, strict=True)


class EncoderClassifier(nn.Module):
    """A classifier on the bottleneck of an encoder: pooling and one linear layer; optionally a reconstruction beside it.

    Args:
        encoder: of a MoNet or U-Net, or the whole network, whose encoder is then taken. It becomes this module's own; to
            transfer weights into it use :func:`copy_encoder`.
        num_classes: number of classes.
        pooling: ``"mean"`` over all positions; or ``"mask"``, weighted by a mask that the input brings as its last channel
            (the mean where that mask is empty). The encoder does not see the mask.
        reconstruction: whether a decoder rebuilds the input from the bottleneck, as an auxiliary task.

    Shape:
        ``(N, C, *sides)``, with ``pooling="mask"`` ``(N, C + 1, *sides)`` -> logits ``(N, num_classes)``; with
        ``reconstruction`` the pair of logits and ``(N, C, *sides)`` in training mode.

    Raises:
        PrivacyConfigError: at construction, for fewer than two classes or an unknown pooling.
        ValueError: for inputs of other channels or axes, or with sides that cannot be halved.
    """

    def __init__(
        self,
        encoder: Encoder | EncoderDecoder,
        num_classes: int = 2,
        pooling: Literal["mean", "mask"] = "mean",
        reconstruction: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "mask") or num_classes < 2:
            raise PrivacyConfigError(
                f"pooling={pooling!r}, num_classes={num_classes}: choose 'mean' or 'mask', and at least 2 classes."
            )
        encoder = encoder.encoder if isinstance(encoder, EncoderDecoder) else encoder
        self.encoder, self.pooling = encoder, pooling
        width, layers = encoder.widths[-1], list[nn.Module]()
        self.head = nn.Linear(width, num_classes)
        for narrower in reversed(encoder.widths[:-1]):
            layers += [conv_transpose(encoder.dims)(width, narrower, 2, 2), nn.ReLU()]
            width = narrower
        last = nn.Conv2d if encoder.dims == 2 else nn.Conv3d
        self.rebuild = nn.Sequential(*layers, last(width, encoder.in_channels, 1)) if reconstruction else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and in training mode the reconstruction if there is one."""
        weights = None
        if self.pooling == "mask":
            x, weights = x[:, :-1], x[:, -1:]
        features = self.encoder(x)[-1]
        logits: Tensor = self.head(_pooled(features, weights))
        return (logits, self.rebuild(features)) if self.rebuild is not None and self.training else logits


def _pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    flat = features.flatten(2)
    if mask is None:
        return flat.mean(2)
    to = features.shape[2:]
    weights = F.interpolate(mask, tuple(to), mode="area").flatten(2)  # the mean of the mask in each position's cell
    total = weights.sum(2, keepdim=True)
    # Where nothing was predicted, every position counts alike.
    weights = torch.where(total > 0, weights / total.clamp_min(1e-12), 1 / flat.shape[2])
    return (flat * weights).sum(2)

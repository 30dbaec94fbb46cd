"""Volumes by a 2D network on their slices: the network whose slice weights can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.volumes.encoder import MapPooling, Norm, backbone_of, map_pooling_of, width_of
from lightning_dp.models.volumes.pooling import MeanQueryAttention, Pooling, pooling_of
from lightning_dp.models.volumes.slices import View, axes_of, check_volumes, cut, fold, lengths_of, split_by_axis

__all__ = ("SliceNet",)


class SliceNet(nn.Module):
    """2.5D classification: one 2D network sees all slices of a volume, and their features are pooled (arXiv 2307.06614).

    With the pooling ``"attention"``, the mean of the features is the query of one multi-head attention, whose weights say
    how much each slice contributed (:meth:`slice_weights`). They weigh *projected* features, and average over heads that
    may disagree: importance is that of a slice, not of its pixels.

    The slices are folded behind the batch axis, volumes first. **A volume is one privacy unit**: the gradients of its slices
    are added before they are clipped. Batch normalisation, which would mix the slices of different volumes, is replaced by
    group normalisation (the paper does not: that is ours).

    Args:
        backbone: a network of timm's by name, or a module that maps ``(R, C, H, W)`` to ``(R, F)`` or to maps
            ``(R, F, h, w)``, which ``map_pooling`` reduces. Its batch normalisations are replaced in place, see ``norm``.
        num_classes: number of logits.
        in_channels: channels of a volume: 1, or what the backbone takes.
        views: ``"all"``: the slices along all three axes; or along ``"z"``, ``"x"`` or ``"y"`` alone.
        pooling: ``"attention"``, ``"mean"``, ``"max"``, ``"lstm"`` (depends on the order of the slices) or
            ``"transformer"``.
        feature_dim: width to which a linear layer projects the backbone's features first; ``None`` for no such layer.
        num_heads: heads of the attention.
        weights: file with a state dict for the backbone; ``None`` starts at random. Nothing is downloaded.
        norm: ``"group"``, or ``"batch"`` to leave batch normalisation where it is (not for private training).
        backbone_channels: channels of the slices that the backbone takes. A single channel of a volume is repeated.
        features: F, where a given module has no attribute ``num_features``.
        map_pooling: ``"mean"`` or ``"max"`` over the positions of the maps of a given module. What is small in its slice
            stands out by its maximum.
        slice_size: height and width to which slices are resampled, for backbones that need a fixed size. Slices of all
            axes then go through the backbone in one call; so they do in any case for cubes.
        volume_size: ``(Z, X, Y)`` of all volumes, to be checked. Private training needs one size in any case.

    Raises:
        PrivacyConfigError: for arguments that do not go together.
        ModuleNotFoundError: timm is asked for and is not installed.

    Shape:
        ``(N, C, Z, X, Y)`` to logits ``(N, num_classes)``.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        num_classes: int = 2,
        in_channels: int = 1,
        views: View = "all",
        pooling: Pooling = "attention",
        feature_dim: int | None = None,
        num_heads: int = 8,
        weights: str | Path | None = None,
        norm: Norm = "group",
        backbone_channels: int = 3,
        features: int | None = None,
        map_pooling: MapPooling = "mean",
        slice_size: tuple[int, int] | None = None,
        volume_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if in_channels not in (1, backbone_channels):
            raise PrivacyConfigError(
                f"in_channels={in_channels} for a backbone with {backbone_channels}: give backbone_channels={in_channels}."
            )
        self.axes = axes_of(views)
        self.in_channels, self.backbone_channels = in_channels, backbone_channels
        self.slice_size = None if slice_size is None else (slice_size[0], slice_size[1])
        self.volume_size = volume_size
        self.backbone = backbone_of(backbone, backbone_channels, weights, norm)
        self.features = width_of(self.backbone, features)
        self.pool_maps = map_pooling_of(map_pooling)
        width = feature_dim or self.features
        self.project = nn.Linear(self.features, width) if feature_dim is not None else nn.Identity()
        self.pooling = pooling_of(pooling, width, num_heads)
        self.head = nn.Linear(width, num_classes)

    @override
    def forward(self, volumes: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits.

        Raises:
            ValueError: for volumes of unequal size, or of another shape than the network was made for.
        """
        logits: Tensor = self.head(self.pooling(self.slice_features(volumes)))
        return logits

    def slice_features(self, volumes: Tensor | Sequence[Tensor]) -> Tensor:
        """The features ``(N, S, F)`` of all slices, in the order z, x, y."""
        volumes = check_volumes(volumes, self.in_channels, self.volume_size)
        found = []
        for slices in cut(volumes, self.axes, self.slice_size):
            # The same as a 1 x 1 convolution with fixed ones: there is nothing to learn in it.
            repeated = slices.expand(-1, -1, self.backbone_channels, -1, -1)
            found.append(self._encoded(fold(repeated)).reshape(*slices.shape[:2], -1))
        features: Tensor = self.project(torch.cat(found, 1) if len(found) > 1 else found[0])
        return features

    def slice_weights(self, volumes: Tensor | Sequence[Tensor], per_head: bool = False) -> dict[str, Tensor]:
        """What the attention makes of each slice: ``(N, Z)``, ``(N, X)`` and ``(N, Y)`` by axis, with the sum 1 over all.

        Args:
            volumes: as for the forward pass.
            per_head: ``(N, heads, Z)`` and so on instead, with the sum 1 for each head.

        Raises:
            PrivacyConfigError: the pooling is no attention.
            ValueError: as in the forward pass.
        """
        if not isinstance(self.pooling, MeanQueryAttention):
            raise PrivacyConfigError(
                f"{type(self.pooling).__name__} has no slice weights: choose pooling='attention', or read the slices' mass "
                "from hirescam()."
            )
        volumes = check_volumes(volumes, self.in_channels, self.volume_size)
        weights = self.pooling.weights(self.slice_features(volumes), per_head)
        return split_by_axis(weights, self.lengths(volumes))

    def lengths(self, volumes: Tensor) -> dict[str, int]:
        """The number of slices along each axis that is cut."""
        return lengths_of(volumes, self.axes)

    def _encoded(self, slices: Tensor) -> Tensor:
        features: Tensor = self.backbone(slices)
        if features.dim() == 4:
            features = self.pool_maps(features)
        if features.dim() != 2 or features.shape[1] != self.features:
            raise ValueError(
                f"{type(self.backbone).__name__} returned {tuple(features.shape)} for {len(slices)} slices; expected "
                f"({len(slices)}, {self.features}) or maps with {self.features} channels. Give features= the right number."
            )
        return features

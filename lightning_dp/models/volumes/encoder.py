"""The 2D network that sees the slices: a small one of our own, one of timm's, or any other that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.optional import require

__all__ = ("MapPooling", "Norm", "ResidualBlock", "SliceEncoder", "backbone_of", "map_pooling_of", "width_of")

Norm = Literal["group", "batch"]
MapPooling = Literal["mean", "max"]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group normalisation, and the input added (He et al. 2016, arXiv 1512.03385).

    Args:
        inputs: channels that come in.
        outputs: channels that go out, a multiple of 4.
        stride: of the first convolution, and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(outputs // 4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(outputs // 4, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.act = nn.ReLU()

    @override
    def forward(self, x: Tensor) -> Tensor:
        """``(R, inputs, H, W)`` to ``(R, outputs, H / stride, W / stride)``."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        result: Tensor = self.act(y + self.shortcut(x))
        return result


class SliceEncoder(nn.Module):
    """A small residual network for slices, with group normalisation; each block halves the sides.

    Args:
        in_channels: channels of a slice.
        widths: channels of the blocks, multiples of 4.
        stem: channels of a first convolution; 0 leaves it out.
        stem_stride: its stride s. Its kernel has ``2 s - 1`` pixels along each side, at least 3. A large stride makes all
            that follows cheap, and there are many slices.

    Attributes:
        num_features: channels of the last block.

    Shape:
        ``(R, in_channels, H, W)`` to maps ``(R, widths[-1], h, w)``.
    """

    def __init__(
        self, in_channels: int = 1, widths: Sequence[int] = (8, 16, 32), stem: int = 0, stem_stride: int = 1
    ) -> None:
        super().__init__()
        if not widths or any(width < 4 or width % 4 for width in widths):
            raise PrivacyConfigError(f"widths={tuple(widths)}: give multiples of 4, for groups of four channels.")
        kernel = max(3, 2 * stem_stride - 1)
        self.stem: nn.Module = nn.Identity()
        if stem:
            first = nn.Conv2d(in_channels, stem, kernel, stem_stride, padding=(kernel - 1) // 2)
            self.stem = nn.Sequential(first, nn.ReLU())
        inputs = [stem or in_channels, *widths[:-1]]
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, 2) for a, b in zip(inputs, widths, strict=True)))
        self.num_features = widths[-1]

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """Maps of features."""
        maps: Tensor = self.blocks(self.stem(slices))
        return maps


def backbone_of(
    backbone: str | nn.Module,
    channels: int,
    weights: str | Path | None = None,
    norm: Norm = "group",
    pooled: bool = True,
) -> nn.Module:
    """A 2D network without its classifier.

    Args:
        backbone: a name of timm's, or a module ``(R, channels, H, W)`` to ``(R, F)`` or ``(R, F, h, w)``, whose batch
            normalisations are then replaced in place.
        channels: channels of a slice.
        weights: file with a state dict, read before normalisations are replaced; entries of a classifier are left out.
            Nothing is downloaded.
        norm: ``"group"`` replaces batch normalisation (see :func:`~lightning_dp.models.replace_batch_norm`); ``"batch"``
            leaves it, for training without privacy.
        pooled: whether a network of timm's ends with its pooling, or with maps.

    Raises:
        PrivacyConfigError: for an unknown ``norm``, or weights that do not fit.
        ModuleNotFoundError: timm is asked for and is not installed.
    """
    if norm not in ("group", "batch"):
        raise PrivacyConfigError(f"norm={norm!r} is unknown; choose 'group' or 'batch'.")
    if isinstance(backbone, str):
        timm = require("timm", "models", f"The backbone {backbone!r}")
        options = {} if pooled else {"global_pool": ""}
        try:
            backbone = timm.create_model(backbone, pretrained=False, num_classes=0, in_chans=channels, **options)
        except RuntimeError as error:
            raise PrivacyConfigError(f"timm has no backbone {backbone!r} ({error}); see timm.list_models().") from error
    assert isinstance(backbone, nn.Module)
    if weights is not None:
        _load(backbone, Path(weights))
    return replace_batch_norm(backbone) if norm == "group" else backbone


def width_of(backbone: nn.Module, features: int | None) -> int:
    """The number of features F that a backbone returns for a slice.

    Raises:
        PrivacyConfigError: it neither is given nor does the backbone tell.
    """
    for told in (features, getattr(backbone, "head_hidden_size", None), getattr(backbone, "num_features", None)):
        if isinstance(told, int):
            return told
    raise PrivacyConfigError(
        f"{type(backbone).__name__} does not say how many features it returns. Give features=, or the module an "
        "attribute num_features."
    )


def map_pooling_of(kind: MapPooling) -> Callable[[Tensor], Tensor]:
    """From maps ``(R, F, *positions)`` to features ``(R, F)``.

    Raises:
        PrivacyConfigError: for an unknown name.
    """
    if kind not in ("mean", "max"):
        raise PrivacyConfigError(f"map_pooling={kind!r} is unknown; choose 'mean' or 'max'.")
    return _mean_of_map if kind == "mean" else _maximum_of_map


def _mean_of_map(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2)


def _maximum_of_map(maps: Tensor) -> Tensor:
    return maps.flatten(2).amax(2)


def _load(backbone: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PrivacyConfigError(
            f"weights={str(path)!r} is not there. Leave weights=None to start at random."
        ) from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise PrivacyConfigError(f"weights={str(path)!r} is no state dict of tensors by name.")
    own = backbone.state_dict()
    missing = sorted(own.keys() - state.keys())
    other = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or other:
        raise PrivacyConfigError(
            f"weights={str(path)!r} do not fit the backbone: missing {missing[:3]}, of another shape {other[:3]}. They must "
            "be those of the same network with the same number of input channels."
        )
    backbone.load_state_dict({name: state[name] for name in own})

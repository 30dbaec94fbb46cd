"""A 2D network made volumetric: full 3D kernels, 2.5D kernels, or its own kernels shared out over the three planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.volumes.encoder import MapPooling, Norm, backbone_of, map_pooling_of, width_of
from lightning_dp.models.volumes.slices import check_volumes

__all__ = ("ACSConv3d", "Convolutions", "VolumeNet", "volumetric")

Convolutions = Literal["conv3d", "acs", "2.5d"]


class ACSConv3d(nn.Module):
    """A 2D convolution on volumes: a third of its kernels in each of the axial, coronal and sagittal planes.

    The three parts (Yang et al. 2021, arXiv 1911.10477) are ordinary 3D convolutions with flat kernels, so that the
    engine's rule for convolutions is exact for them. Together they have as many weights as the 2D convolution.

    Args:
        conv: the convolution whose kernels are taken over. Its padding must keep planes aligned:
            ``2 * padding = dilation * (kernel_size - 1)``.

    Raises:
        PrivacyConfigError: for grouped convolutions and other padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        _check_planes(conv)
        share, rest = divmod(conv.out_channels, 3)
        sizes = [share + (part < rest) for part in range(3)]
        weights = torch.split(conv.weight.detach(), sizes)
        biases = [None] * 3 if conv.bias is None else torch.split(conv.bias.detach(), sizes)
        self.planes = nn.ModuleList(
            _flat_conv(conv, plane, weight, bias)
            for plane, (weight, bias) in enumerate(zip(weights, biases, strict=True))
            if len(weight)
        )

    @override
    def forward(self, volumes: Tensor) -> Tensor:
        """``(N, C_in, Z, X, Y)`` to ``(N, C_out, Z', X', Y')``."""
        return torch.cat([plane(volumes) for plane in self.planes], 1)


class VolumeNet(nn.Module):
    """A volumetric baseline: a 2D network with its convolutions made volumetric, pooling over the volume, linear classifier.

    Args:
        backbone: a convolutional network of timm's by name, or a module that maps ``(R, C, H, W)`` to maps
            ``(R, F, h, w)``. It is changed in place.
        convolutions: see :func:`volumetric`.
        num_classes: number of logits.
        in_channels: channels of a volume, which the backbone takes as they are.
        weights: file with a state dict for the 2D network; ``None`` starts at random.
        norm: ``"group"``, or ``"batch"`` to keep batch normalisation (not for private training).
        features: F, where a given module has no attribute ``num_features``.
        map_pooling: ``"mean"`` or ``"max"`` over the positions of the maps.

    Shape:
        ``(N, C, Z, X, Y)`` to logits ``(N, num_classes)``.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        convolutions: Convolutions = "conv3d",
        num_classes: int = 2,
        in_channels: int = 1,
        weights: str | Path | None = None,
        norm: Norm = "group",
        features: int | None = None,
        map_pooling: MapPooling = "mean",
    ) -> None:
        super().__init__()
        flat = backbone_of(backbone, in_channels, weights, norm, pooled=False)
        width = width_of(flat, features)
        self.in_channels = in_channels
        self.backbone = volumetric(flat, convolutions)
        self.pool_maps = map_pooling_of(map_pooling)
        self.head = nn.Linear(width, num_classes)

    @override
    def forward(self, volumes: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits.

        Raises:
            ValueError: for volumes of unequal size, or of another shape than the network was made for.
        """
        maps: Tensor = self.backbone(check_volumes(volumes, self.in_channels))
        logits: Tensor = self.head(self.pool_maps(maps))
        return logits


def volumetric(model: nn.Module, convolutions: Convolutions = "conv3d") -> nn.Module:
    """Makes the layers of a 2D convolutional network volumetric, in place; strides and pooling act along all three axes.

    Args:
        model: a network of convolutions, pooling, normalisation and what acts element by element.
        convolutions: ``"conv3d"``: cubic kernels, the 2D kernel repeated along the new axis and divided by its length
            (Carreira and Zisserman 2017, arXiv 1705.07750); ``"acs"``: :class:`ACSConv3d`; ``"2.5d"``: the 2D kernel in
            the plane of the last two axes.

    Returns:
        The model, or what replaces it.

    Raises:
        PrivacyConfigError: for an unknown choice, and by name for layers that have no volumetric counterpart here.
    """
    makers: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
        "conv3d": _cubic_conv,
        "acs": ACSConv3d,
        "2.5d": lambda conv: _flat_conv(conv, 0, conv.weight.detach(), conv.bias),
    }
    if convolutions not in makers:
        raise PrivacyConfigError(f"convolutions={convolutions!r} is unknown; choose 'conv3d', 'acs' or '2.5d'.")
    replaced = {
        module: new
        for name, module in model.named_modules()
        if (new := _counterpart(module, name, makers[convolutions])) is not None
    }
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    return replaced.get(model, model)


def _counterpart(module: nn.Module, name: str, convolution: Callable[[nn.Conv2d], nn.Module]) -> nn.Module | None:
    """What replaces a layer; ``None`` if it stays."""
    where = f"{name or 'the model'} ({type(module).__name__})"
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise PrivacyConfigError(f"{where} pads otherwise than by a number of zeros, which is not converted.")
        try:
            return convolution(module)
        except PrivacyConfigError as error:
            raise PrivacyConfigError(f"{where}: {error}") from error
    if type(module) is nn.MaxPool2d:
        kernel, stride, padding, dilation = map(
            _cube, (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        return nn.MaxPool3d(kernel, stride, padding, dilation, module.return_indices, module.ceil_mode)
    if type(module) is nn.AvgPool2d:
        kernel, stride, padding = map(_cube, (module.kernel_size, module.stride, module.padding))
        return nn.AvgPool3d(kernel, stride, padding, module.ceil_mode, module.count_include_pad)
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return nn.AdaptiveAvgPool3d(1)
    if type(module) is nn.BatchNorm2d:
        new = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, module.affine)
        new.load_state_dict(module.state_dict())
        return new
    if type(module) is nn.Dropout2d:
        return nn.Dropout3d(module.p)
    if type(module).__name__.endswith("2d") and not list(module.children()):
        raise PrivacyConfigError(f"{where} has no volumetric counterpart here. Replace it in the 2D network first.")
    return None


def _cubic_conv(conv: nn.Conv2d) -> nn.Module:
    length = conv.kernel_size[0]
    new = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        _cube(conv.kernel_size),
        _cube(conv.stride),
        _cube(_numbers(conv.padding)),
        _cube(conv.dilation),
        conv.groups,
        conv.bias is not None,
    )
    inflated = conv.weight.detach().unsqueeze(2).expand(-1, -1, length, -1, -1) / length
    return _with_weights(new, inflated, conv.bias)


def _flat_conv(conv: nn.Conv2d, plane: int, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Kernels of a 2D convolution in the plane orthogonal to an axis (0, 1, 2); along it, one voxel and the same stride."""

    def with_axis(values: Sequence[int], along: int) -> tuple[int, int, int]:
        a, b, c = list(values[:plane]) + [along] + list(values[plane:])
        return a, b, c

    new = nn.Conv3d(
        conv.in_channels,
        len(weight),
        with_axis(conv.kernel_size, 1),
        with_axis(conv.stride, conv.stride[0]),
        with_axis(_numbers(conv.padding), 0),
        with_axis(conv.dilation, 1),
        conv.groups,
        bias is not None,
    )
    return _with_weights(new, weight.unsqueeze(2 + plane), bias)


def _with_weights(new: nn.Conv3d, weight: Tensor, bias: Tensor | None) -> nn.Conv3d:
    with torch.no_grad():
        new.weight.copy_(weight)
        if new.bias is not None and bias is not None:
            new.bias.copy_(bias)
    return new.to(weight.device, weight.dtype)


def _check_planes(conv: nn.Conv2d) -> None:
    geometry = zip(_numbers(conv.padding), conv.dilation, conv.kernel_size, strict=True)
    if conv.groups != 1:
        raise PrivacyConfigError(
            "a grouped convolution cannot be shared out over three planes; use '2.5d' or 'conv3d'."
        )
    if any(2 * padding != dilation * (kernel - 1) for padding, dilation, kernel in geometry):
        raise PrivacyConfigError(
            "planes stay aligned only if 2 * padding = dilation * (kernel_size - 1); use '2.5d' or 'conv3d'."
        )


def _numbers(values: str | Sequence[int]) -> tuple[int, ...]:
    assert not isinstance(values, str)
    return tuple(values)


def _cube(values: int | Sequence[int]) -> tuple[int, int, int]:
    """Height and width, with the height for the new axis too."""
    height, width = (values, values) if isinstance(values, int) else values
    return height, height, width

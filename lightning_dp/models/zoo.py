"""The image classifiers of this package under names of timm's ``create_model``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.resnet9 import ResNet9
from lightning_dp.models.smoothnet import SmoothNet
from lightning_dp.models.wide_resnet import WideResNet

__all__ = ["register_with_timm"]  # a list: timm appends the names of what it is told of


def resnet9_scalenorm(pretrained: bool = False, **options: Any) -> nn.Module:
    """`ResNet9`."""
    return _made(ResNet9, {}, pretrained, options)


def resnet9_groupnorm(pretrained: bool = False, **options: Any) -> nn.Module:
    """`ResNet9` without ScaleNorm."""
    return _made(ResNet9, {"scale_norm": False}, pretrained, options)


def smoothnet_w80d50(pretrained: bool = False, **options: Any) -> nn.Module:
    """`SmoothNet` of the paper."""
    return _made(SmoothNet, {"width": 8.0, "depth": 5}, pretrained, options)


def smoothnet_w10d10(pretrained: bool = False, **options: Any) -> nn.Module:
    """The smallest `SmoothNet` of the paper's search."""
    return _made(SmoothNet, {"width": 1.0, "depth": 1}, pretrained, options)


def wrn16_4_groupnorm_ws(pretrained: bool = False, **options: Any) -> nn.Module:
    """`WideResNet` of 16 layers, four times as wide."""
    return _made(WideResNet, {"depth": 16, "width": 4}, pretrained, options)


def wrn16_4_scalenorm_ws(pretrained: bool = False, **options: Any) -> nn.Module:
    """The same with ScaleNorm."""
    return _made(WideResNet, {"depth": 16, "width": 4, "scale_norm": True}, pretrained, options)


def wrn40_4_groupnorm_ws(pretrained: bool = False, **options: Any) -> nn.Module:
    """`WideResNet` of 40 layers, four times as wide."""
    return _made(WideResNet, {"depth": 40, "width": 4}, pretrained, options)


def wrn40_4_scalenorm_ws(pretrained: bool = False, **options: Any) -> nn.Module:
    """The same with ScaleNorm."""
    return _made(WideResNet, {"depth": 40, "width": 4, "scale_norm": True}, pretrained, options)


ENTRIES: tuple[Callable[..., nn.Module], ...] = (
    resnet9_scalenorm, resnet9_groupnorm, smoothnet_w80d50, smoothnet_w10d10, wrn16_4_groupnorm_ws, wrn16_4_scalenorm_ws,
    wrn40_4_groupnorm_ws, wrn40_4_scalenorm_ws,
)  # fmt: skip


def register_with_timm() -> bool:
    """Makes ``timm.create_model("smoothnet_w80d50")`` and the other networks of this file known, once.

    Called when ``lightning_dp.models`` is imported. timm has no entry points, so its registry has to be there; the import
    takes 0.14 s beside the five seconds of Lightning, which brings torchvision in anyway. Without timm nothing happens.

    Returns:
        Whether timm is there and knows them.
    """
    try:
        from timm.models import is_model, register_model
    except Exception:  # whatever a missing or a broken timm raises: this package works without it
        return False
    for entry in ENTRIES:
        if not is_model(entry.__name__):
            register_model(entry)
    return True


def _made(
    network: Callable[..., nn.Module], fixed: Mapping[str, Any], pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    """The network with timm's names of arguments translated; unknown ones are refused by the network."""
    if pretrained:
        raise PrivacyConfigError(f"{network.__name__} has no pretrained weights: give pretrained=False.")
    of_timm = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}  # passed along with every call
    given = {key: value for key, value in options.items() if key not in of_timm}
    if refused := sorted(given.keys() & {"features_only", "global_pool", "drop_rate", "out_indices"}):
        raise PrivacyConfigError(
            f"{network.__name__} is a whole classifier and has no {', '.join(refused)}: leave it out. Its arguments are in the "
            f"docstring of lightning_dp.models.{network.__name__}."
        )
    if "in_chans" in given:
        given["in_channels"] = given.pop("in_chans")
    return network(**{**fixed, **given})

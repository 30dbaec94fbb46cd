"""The residual network for chest X-rays of Tayebi Arasteh et al. (arXiv 2302.01622)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.images import check_images
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.optional import require

__all__ = ("chest_xray_resnet9",)

GROUPS = 32


def chest_xray_resnet9(num_labels: int = 8, in_channels: int = 3) -> nn.Module:
    """torchvision's residual network with one basic block in each of four stages, group normalisation and Mish.

    The network of the public code of "Private, fair and accurate" (arXiv 2302.01622): a 7 x 7 stem and stages of 64, 128, 256
    and 512 channels; every normalisation (stem, two in each block, three at shortcuts: 12) is a GroupNorm of 32 groups, every
    ReLU a Mish; 4,909,896 parameters for eight labels in colour.

    Args:
        num_labels: outputs.
        in_channels: 3 as in that code, or 1.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, num_labels)``; 512 x 512 in that code, anything from 32 x 32 works.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        PrivacyConfigError: for numbers below 1; in ``forward``, for images that do not fit.
    """
    if num_labels < 1 or in_channels < 1:
        raise PrivacyConfigError(f"num_labels={num_labels} and in_channels={in_channels} must be at least 1.")
    resnet = require("torchvision.models.resnet", "recipes", "chest_xray_resnet9")
    model: nn.Module = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=num_labels)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Mish())
    model.register_forward_pre_hook(_check)
    return replace_batch_norm(model, GROUPS)


def _check(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    stem = model.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    check_images(inputs[0], stem.in_channels, 32, "chest_xray_resnet9")

"""torchvision's networks, small, with group instead of batch normalisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from torchvision import models
from torchvision.models import convnext, densenet, resnet, swin_transformer

from lightning_dp.gradients import RowMemory
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients
from tests.gradients.test_borrowed import engine_sum

norm = partial(nn.GroupNorm, 2)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 5, width_per_group=64, norm_layer=norm), 32),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=5, dropout=0.0), 48),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=5, dropout=0.0, norm_layer=norm), 32),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=5), 48),
    "densenet": (lambda: densenet.DenseNet(4, (2, 2), 8, num_classes=5), 32),
    "convnext": (
        lambda: convnext.ConvNeXt(
            [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)], 0.0, num_classes=5
        ),
        32,
    ),
    "vit": (lambda: models.VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=5), 16),
    "swin": (
        lambda: swin_transformer.SwinTransformer(
            [4, 4], 8, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=5
        ),
        32,
    ),
}


def replace_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(2, child.num_features))
        else:
            replace_batch_norm(child)
    return module


@pytest.mark.parametrize("name", NETWORKS)
def test_network_matches_the_loop(name: str) -> None:
    torch.manual_seed(1)
    make, size = NETWORKS[name]
    module, rows = replace_batch_norm(make()).train(), RowMemory()
    if name == "vit":
        nn.init.normal_(module.heads.head.weight)  # it starts at zero, and so do the gradients before it
    for units in (1, 3):
        x, y = torch.randn(units, 3, size, size), torch.linspace(-1, 1, units)
        gradients = unit_gradients(module, squared_loss, x, y)
        bound = float(torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients]).median())
        truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
        assert relative_error(engine_sum(module, x, y, bound, rows), truth) < 1e-4

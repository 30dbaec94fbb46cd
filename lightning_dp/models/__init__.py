"""Networks that train well privately, and fixed feature extractors that cost no privacy. No Lightning here."""

from __future__ import annotations

from lightning_dp.models.mesh import MeshGNN
from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.monet import RDDC, MoNet
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.resnet9 import ResNet9
from lightning_dp.models.scale_norm import GroupSearch, ResidualBlock, ScaleNorm, add_scale_norm, search_groups
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.small import ColourCNN, FlatLinear, TemperedCNN, TemperedSigmoid
from lightning_dp.models.smoothnet import SmoothNet
from lightning_dp.models.weight_standardised import StandardisedConv2d
from lightning_dp.models.wide_resnet import WideResNet
from lightning_dp.models.zoo import register_with_timm

__all__ = (
    "ColourCNN",
    "FlatLinear",
    "GroupNormMLP",
    "GroupSearch",
    "MeshGNN",
    "MoNet",
    "ProjectedLinear",
    "RDDC",
    "RandomProjection",
    "ResNet9",
    "ResidualBlock",
    "ScaleNorm",
    "ScatteringTransform",
    "SmoothNet",
    "StandardisedConv2d",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "WideResNet",
    "add_scale_norm",
    "replace_batch_norm",
    "search_groups",
)

# timm has no entry points for networks: its registry is told as soon as this package is imported, where timm is there.
register_with_timm()

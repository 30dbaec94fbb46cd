"""Networks that train well privately, and fixed feature extractors that cost no privacy. No Lightning here."""

from __future__ import annotations

from lightning_dp.models.complex import (
    Cardioid,
    ComplexAvgPool,
    ComplexCNN,
    ComplexConv1d,
    ComplexConv2d,
    ComplexGroupNorm,
    ComplexLayerNorm,
    ComplexLinear,
    ComplexMLP,
    ConjugateMish,
    ConjugatePool,
    ContrastHistogram2d,
    IGaussian,
    InverseFourier2d,
    KSpaceNet,
    LocalContrast2d,
    Magnitude,
    RealPart,
    SeparableMish,
    StandardisedComplexConv2d,
    TwoChannelCNN,
    UnitPower,
)
from lightning_dp.models.detection import AnchorFreeDetector
from lightning_dp.models.losses import dice_cross_entropy, dice_loss, soft_dice
from lightning_dp.models.mesh import MeshGNN
from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.monet import RDDC, MoNet
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.resnet9 import ResNet9
from lightning_dp.models.resnet9_cxr import chest_xray_resnet9
from lightning_dp.models.scale_norm import GroupSearch, ResidualBlock, ScaleNorm, add_scale_norm, search_groups
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.silhouette import SilhouetteCNN
from lightning_dp.models.small import ColourCNN, FlatLinear, TemperedCNN, TemperedSigmoid
from lightning_dp.models.smoothnet import SmoothNet
from lightning_dp.models.transfer import Crops, EncoderClassifier, copy_encoder, foreground_box, localise
from lightning_dp.models.unet import UNet
from lightning_dp.models.volumes import ACSConv3d, SliceEncoder, SliceNet, VolumeNet, hirescam, volumetric
from lightning_dp.models.weight_standardised import StandardisedConv2d
from lightning_dp.models.wide_resnet import WideResNet
from lightning_dp.models.zoo import register_with_timm

__all__ = (
    "ACSConv3d",
    "AnchorFreeDetector",
    "Cardioid",
    "ColourCNN",
    "ComplexAvgPool",
    "ComplexCNN",
    "ComplexConv1d",
    "ComplexConv2d",
    "ComplexGroupNorm",
    "ComplexLayerNorm",
    "ComplexLinear",
    "ComplexMLP",
    "ConjugateMish",
    "ConjugatePool",
    "ContrastHistogram2d",
    "Crops",
    "EncoderClassifier",
    "FlatLinear",
    "GroupNormMLP",
    "GroupSearch",
    "IGaussian",
    "InverseFourier2d",
    "KSpaceNet",
    "LocalContrast2d",
    "Magnitude",
    "MeshGNN",
    "MoNet",
    "ProjectedLinear",
    "RDDC",
    "RandomProjection",
    "RealPart",
    "ResNet9",
    "ResidualBlock",
    "ScaleNorm",
    "ScatteringTransform",
    "SeparableMish",
    "SilhouetteCNN",
    "SliceEncoder",
    "SliceNet",
    "SmoothNet",
    "StandardisedComplexConv2d",
    "StandardisedConv2d",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "TwoChannelCNN",
    "UNet",
    "UnitPower",
    "VolumeNet",
    "WideResNet",
    "add_scale_norm",
    "chest_xray_resnet9",
    "copy_encoder",
    "dice_cross_entropy",
    "dice_loss",
    "foreground_box",
    "hirescam",
    "localise",
    "replace_batch_norm",
    "search_groups",
    "soft_dice",
    "volumetric",
)

# timm has no entry points for networks: its registry is told as soon as this package is imported, where timm is there.
register_with_timm()

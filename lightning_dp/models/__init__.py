"""Networks that train well privately, and fixed feature extractors that cost no privacy. No Lightning here."""

from __future__ import annotations

from lightning_dp.models.losses import dice_cross_entropy, dice_loss, soft_dice
from lightning_dp.models.mesh import MeshGNN
from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.monet import RDDC, MoNet
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.small import FlatLinear, TemperedCNN, TemperedSigmoid
from lightning_dp.models.transfer import Crops, EncoderClassifier, copy_encoder, foreground_box, localise
from lightning_dp.models.unet import UNet

__all__ = (
    "Crops",
    "EncoderClassifier",
    "FlatLinear",
    "GroupNormMLP",
    "MeshGNN",
    "MoNet",
    "ProjectedLinear",
    "RDDC",
    "RandomProjection",
    "ScatteringTransform",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "UNet",
    "copy_encoder",
    "dice_cross_entropy",
    "dice_loss",
    "foreground_box",
    "localise",
    "replace_batch_norm",
    "soft_dice",
)

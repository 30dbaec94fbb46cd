"""Networks that train well privately, and fixed feature extractors that cost no privacy. No Lightning here."""

from __future__ import annotations

from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.small import FlatLinear, TemperedCNN, TemperedSigmoid
from lightning_dp.models.volumes import ACSConv3d, SliceEncoder, SliceNet, VolumeNet, hirescam, volumetric

__all__ = (
    "ACSConv3d",
    "FlatLinear",
    "GroupNormMLP",
    "ProjectedLinear",
    "RandomProjection",
    "ScatteringTransform",
    "SliceEncoder",
    "SliceNet",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "VolumeNet",
    "hirescam",
    "replace_batch_norm",
    "volumetric",
)

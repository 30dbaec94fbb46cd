"""Networks that train well privately, and fixed feature extractors that cost no privacy. No Lightning here."""

from __future__ import annotations

from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.resnet9_cxr import chest_xray_resnet9
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.small import FlatLinear, TemperedCNN, TemperedSigmoid

__all__ = (
    "FlatLinear",
    "GroupNormMLP",
    "ProjectedLinear",
    "RandomProjection",
    "ScatteringTransform",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "chest_xray_resnet9",
    "replace_batch_norm",
)

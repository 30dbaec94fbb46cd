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
    ConjugateMish,
    ConjugatePool,
    IGaussian,
    Magnitude,
    RealPart,
    SeparableMish,
    StandardisedComplexConv2d,
    TwoChannelCNN,
)
from lightning_dp.models.mlp import GroupNormMLP, TanhMLP
from lightning_dp.models.projection import ProjectedLinear, RandomProjection
from lightning_dp.models.replace import replace_batch_norm
from lightning_dp.models.scattering import ScatteringTransform
from lightning_dp.models.small import FlatLinear, TemperedCNN, TemperedSigmoid

__all__ = (
    "Cardioid",
    "ComplexAvgPool",
    "ComplexCNN",
    "ComplexConv1d",
    "ComplexConv2d",
    "ComplexGroupNorm",
    "ComplexLayerNorm",
    "ComplexLinear",
    "ConjugateMish",
    "ConjugatePool",
    "FlatLinear",
    "GroupNormMLP",
    "IGaussian",
    "Magnitude",
    "ProjectedLinear",
    "RandomProjection",
    "RealPart",
    "ScatteringTransform",
    "SeparableMish",
    "StandardisedComplexConv2d",
    "TanhMLP",
    "TemperedCNN",
    "TemperedSigmoid",
    "TwoChannelCNN",
    "replace_batch_norm",
)

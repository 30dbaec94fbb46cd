"""Layers over the complex numbers, and a small network of them: k-space, spectra, analytic signals.

Every layer is exact in the gradient engine: linear and convolutional layers and the norms by rules, the others by repeating
the recorded call. See :mod:`lightning_dp.gradients.reals` for what clipping and noise mean for complex parameters.
"""

from __future__ import annotations

from lightning_dp.models.complex.activations import Cardioid, ConjugateMish, IGaussian, SeparableMish
from lightning_dp.models.complex.fourier import InverseFourier2d, LocalContrast2d, UnitPower
from lightning_dp.models.complex.histogram import ComplexMLP, ContrastHistogram2d
from lightning_dp.models.complex.kspace import KSpaceNet
from lightning_dp.models.complex.layers import (
    ComplexConv1d,
    ComplexConv2d,
    ComplexLinear,
    StandardisedComplexConv2d,
)
from lightning_dp.models.complex.network import ComplexCNN, TwoChannelCNN
from lightning_dp.models.complex.norm import ComplexGroupNorm, ComplexLayerNorm
from lightning_dp.models.complex.pooling import ComplexAvgPool, ConjugatePool, Magnitude, RealPart
from lightning_dp.models.complex.whitening import apply_matrix, whitened, whitening_matrix

__all__ = (
    "Cardioid",
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
    "IGaussian",
    "InverseFourier2d",
    "KSpaceNet",
    "LocalContrast2d",
    "Magnitude",
    "RealPart",
    "SeparableMish",
    "StandardisedComplexConv2d",
    "TwoChannelCNN",
    "UnitPower",
    "apply_matrix",
    "whitened",
    "whitening_matrix",
)

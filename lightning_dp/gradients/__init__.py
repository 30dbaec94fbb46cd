"""From a scalar loss to a clipped and noised gradient, in plain PyTorch: no Lightning needed."""

from __future__ import annotations

from lightning_dp.gradients.adaptive import AdaptiveClipping, AdaptiveThreshold
from lightning_dp.gradients.ascent import Ascent, TwoPasses
from lightning_dp.gradients.bias import Bias, BiasProbe
from lightning_dp.gradients.clipping import Clipping, ClippingName
from lightning_dp.gradients.contributions import Contribution, EmbeddingRows, OuterProduct, PerUnit
from lightning_dp.gradients.engine import GradientEngine, LossReduction
from lightning_dp.gradients.graphs import rows_of_units, units_of_batch
from lightning_dp.gradients.noise import NoiseSource
from lightning_dp.gradients.replay import Randomness
from lightning_dp.gradients.row_memory import RowMemory
from lightning_dp.gradients.rules import LayerCall, LayerRule, register_rule
from lightning_dp.gradients.units import UnitMap

__all__ = (
    "AdaptiveClipping",
    "AdaptiveThreshold",
    "Ascent",
    "Bias",
    "BiasProbe",
    "Clipping",
    "ClippingName",
    "Contribution",
    "EmbeddingRows",
    "GradientEngine",
    "LayerCall",
    "LayerRule",
    "LossReduction",
    "NoiseSource",
    "OuterProduct",
    "PerUnit",
    "Randomness",
    "RowMemory",
    "TwoPasses",
    "UnitMap",
    "register_rule",
    "rows_of_units",
    "units_of_batch",
)

"""Lightning strategies that train privately."""

from __future__ import annotations

from lightning_dp.strategies.bam import BAMStrategy
from lightning_dp.strategies.dp import DPStrategy
from lightning_dp.strategies.langevin import LangevinStrategy
from lightning_dp.strategies.neural_dp import NeuralDPStrategy
from lightning_dp.strategies.refusals import REFUSALS, Refusal

__all__ = ("REFUSALS", "BAMStrategy", "DPStrategy", "LangevinStrategy", "NeuralDPStrategy", "Refusal")

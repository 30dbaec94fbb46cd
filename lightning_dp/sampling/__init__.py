"""Private sampling: which samples a step uses, how they reach memory, and what that costs."""

from __future__ import annotations

from lightning_dp.sampling.batches import LogicalBatchSampler, RankDraw, split_draw, split_units
from lightning_dp.sampling.build import build_private_loader
from lightning_dp.sampling.checks import loader_batch_size, why_not_private
from lightning_dp.sampling.keys import following_key, key_from_seed, new_key
from lightning_dp.sampling.loader import LogicalStep, PrivateDataLoader
from lightning_dp.sampling.samplers import (
    BallsInBinsSampler,
    LogicalSampler,
    PoissonSampler,
    ShuffleSampler,
    TruncatedPoissonSampler,
)
from lightning_dp.sampling.units import PrivacyUnit, UnitIds, UnitRows, number_units

__all__ = (
    "BallsInBinsSampler",
    "LogicalBatchSampler",
    "LogicalSampler",
    "LogicalStep",
    "PoissonSampler",
    "PrivacyUnit",
    "PrivateDataLoader",
    "RankDraw",
    "ShuffleSampler",
    "TruncatedPoissonSampler",
    "UnitIds",
    "UnitRows",
    "build_private_loader",
    "following_key",
    "key_from_seed",
    "loader_batch_size",
    "new_key",
    "number_units",
    "split_draw",
    "split_units",
    "why_not_private",
)

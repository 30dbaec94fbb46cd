"""Private sampling: which samples a step uses, how they reach memory, and what that costs."""

from __future__ import annotations

from lightning_dp.sampling.batches import LogicalBatchSampler, RankDraw, split_draw
from lightning_dp.sampling.build import build_private_loader
from lightning_dp.sampling.checks import loader_batch_size, why_not_private
from lightning_dp.sampling.keys import key_from_seed, new_key
from lightning_dp.sampling.loader import LogicalStep, PrivateDataLoader
from lightning_dp.sampling.samplers import LogicalSampler, PoissonSampler, ShuffleSampler

__all__ = (
    "LogicalBatchSampler",
    "LogicalSampler",
    "LogicalStep",
    "PoissonSampler",
    "PrivateDataLoader",
    "RankDraw",
    "ShuffleSampler",
    "build_private_loader",
    "key_from_seed",
    "loader_batch_size",
    "new_key",
    "split_draw",
    "why_not_private",
)

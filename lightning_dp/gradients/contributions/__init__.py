"""The forms in which a parameter's per-unit gradients are kept: all that a layer rule may return."""

from __future__ import annotations

from lightning_dp.gradients.contributions.base import (
    CHUNK_ELEMENTS,
    Contribution,
    PerUnit,
    add_weighted_sums,
    joint_squared_norms,
    mixed,
    unit_chunks,
)
from lightning_dp.gradients.contributions.embedding_rows import EmbeddingRows
from lightning_dp.gradients.contributions.outer_product import OuterProduct
from lightning_dp.gradients.contributions.product_sum import ProductSum

__all__ = (
    "CHUNK_ELEMENTS",
    "Contribution",
    "EmbeddingRows",
    "OuterProduct",
    "PerUnit",
    "ProductSum",
    "add_weighted_sums",
    "joint_squared_norms",
    "mixed",
    "unit_chunks",
)

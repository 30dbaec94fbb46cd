"""Float32 that means float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ("full_precision",)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block, float32 products and convolutions keep all 24 bits; afterwards the switches are as before.

    ``torch.set_float32_matmul_precision("high")``, which Lightning recommends on recent GPUs, makes them TF32 or
    bfloat16, and cuDNN convolutions are TF32 by default. A norm and a sum that are rounded to 8 or 11 bits by
    different routes can differ by more than any margin: the bound would hold for another gradient than the one
    that is summed.
    """
    knobs = _knobs()
    before = [getattr(owner, name) for owner, name, _ in knobs]
    try:
        for owner, name, full in knobs:
            setattr(owner, name, full)
        yield
    finally:
        for (owner, name, _), value in zip(knobs, before, strict=True):
            setattr(owner, name, value)


def _knobs() -> list[tuple[Any, str, Any]]:
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer; old and new switches must not be mixed
        owners: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]

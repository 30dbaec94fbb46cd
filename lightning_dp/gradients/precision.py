"""Float32 that means float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ("arithmetic", "full_precision")


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block, float32 products and convolutions keep all 24 bits; afterwards the switches are as before.

    ``torch.set_float32_matmul_precision("high")``, which Lightning recommends on recent GPUs, makes them TF32 or
    bfloat16, and cuDNN convolutions are TF32 by default. A norm and a sum that are rounded to 8 or 11 bits by
    different routes can differ by more than any margin: the bound would hold for another gradient than the one
    that is summed.
    """
    knobs = _knobs("")
    before = [getattr(owner, name) for owner, name, _ in knobs]
    try:
        for owner, name, full in knobs:
            setattr(owner, name, full)
        yield
    finally:
        for (owner, name, _), value in zip(knobs, before, strict=True):
            setattr(owner, name, value)


def arithmetic(device_type: str) -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which float32 means float32: no reduced precision, and no autocast.

    Entering such a context costs more than a small layer's norm, so it is left out where the switches are right already.
    """
    right = all(getattr(owner, name) in (full, "none") for owner, name, full in _knobs(device_type))

    @contextmanager
    def strict() -> Iterator[None]:
        with torch.autocast(device_type, enabled=False), full_precision():
            yield

    def context() -> AbstractContextManager[None]:
        return nullcontext() if right and not torch.is_autocast_enabled(device_type) else strict()

    return context


def _knobs(device_type: str) -> list[tuple[Any, str, Any]]:
    """``(owner, name, value for full precision)`` of the switches that concern a device; "none" is full as well."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer; old and new switches must not be mixed
        owners: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        chosen = owners[2:] if device_type == "cpu" else owners
        return [(owner, "fp32_precision", "ieee") for owner in chosen]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]

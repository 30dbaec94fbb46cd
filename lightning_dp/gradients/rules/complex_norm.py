"""Whitening norms over the complex numbers: a real 2 x 2 matrix and a complex shift for each channel or feature."""

from __future__ import annotations

from typing import Any, cast

import torch

from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.reals import as_real
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("complex_norm_rule",)


@register_rule("lightning_dp.models.complex.norm.ComplexNorm", complex_too=True)
def complex_norm_rule(call: LayerCall) -> dict[str, Contribution]:
    """``y = W xhat + b`` on the parts of xhat: over the real coordinates the matrix's gradient is ``sum g xhat^T``."""
    module, units = cast(Any, call.module), call.units
    grad = units.by_unit(module.positions(call.grad), call.name).flatten(1, 2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        normal = units.by_unit(module.positions(module.normalised(call.x)), call.name).flatten(1, 2)
        found["weight"] = PerUnit(torch.einsum("up...i,up...j->u...ij", as_real(grad), as_real(normal)))
    if "bias" in call.trainable:
        found["bias"] = PerUnit(grad.sum(1))
    return found

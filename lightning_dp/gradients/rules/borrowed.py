"""Layers that a user registered with Opacus work here unchanged.

``opacus.grad_sample.register_grad_sampler`` files a function ``sampler(layer, activations, backprops)`` that returns
``{parameter: gradients (rows, *shape)}``. Opacus is not imported for that: where nobody imported it, nothing is filed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.contributions import Contribution, PerUnit

if TYPE_CHECKING:
    from lightning_dp.gradients.rules.registry import LayerCall, LayerRule

__all__ = ("borrowed_rule",)

Sampler = Callable[[nn.Module, list[Tensor], Tensor], Mapping[nn.Parameter, Tensor]]


def borrowed_rule(module: nn.Module) -> LayerRule | None:
    """The rule made of what the user registered for exactly this class; Opacus' own functions are left aside.

    Like a rule of one's own, the function is trusted; the self-check of ``DPStrategy`` compares it with plain PyTorch.
    """
    table = getattr(getattr(sys.modules.get("opacus.grad_sample"), "GradSampleModule", None), "GRAD_SAMPLERS", {})
    sampler = table.get(type(module))
    if sampler is None or _is_their_own(sampler) or "forward" in vars(module):
        return None

    def rule(call: LayerCall) -> dict[str, Contribution]:
        return _contributions(call, sampler)

    return rule


def _contributions(call: LayerCall, sampler: Sampler) -> dict[str, Contribution]:
    activations = [t.to(call.dtype) if t.is_floating_point() else t for t in call.args if isinstance(t, Tensor)]
    found = sampler(call.module, activations, call.grad)
    names = {parameter: name for name, parameter in call.module.named_parameters(recurse=False)}
    gradients = {names.get(parameter): value for parameter, value in found.items() if parameter.requires_grad}
    if gradients.keys() != call.trainable:
        raise PrivacyError(
            f"{call.name}: the function registered with Opacus returned gradients of other parameters than the layer's "
            f"trainable ones ({', '.join(sorted(call.trainable))}). Correct it, or remove it: without one the layer's "
            "gradient is found by repeating its forward pass."
        )
    contributions: dict[str, Contribution] = {}
    for name, value in gradients.items():
        assert name is not None
        shape = call.module.get_parameter(name).shape
        if value.shape[1:] != shape:
            raise PrivacyError(
                f"{call.name}: the function registered with Opacus returned gradients of shape {tuple(value.shape)} for "
                f"{name}; one of shape {tuple(shape)} is due for each row of the batch."
            )
        contributions[name] = PerUnit(call.units.by_unit(value.to(call.dtype), call.name).sum(1))
    return contributions


def _is_their_own(sampler: Any) -> bool:
    return str(getattr(sampler, "__module__", "")).partition(".")[0] == "opacus"

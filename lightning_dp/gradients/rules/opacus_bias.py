"""The learned extra key and value of Opacus' attention: one more step at the end of a sequence, whatever the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_dp.gradients.bare import tensors_in
from lightning_dp.gradients.contributions import Contribution, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("sequence_bias_rule",)


def _count_rows(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    return int(next(tensors_in((args, kwargs))).shape[0 if module.batch_first else 1])


@register_rule("opacus.layers.dp_multihead_attention.SequenceBias", rows=_count_rows)
def sequence_bias_rule(call: LayerCall) -> dict[str, Contribution]:
    """The gradient of the step that was appended; Opacus' attention has the batch on axis 1 here in either layout."""
    grad = call.grad if call.module.batch_first else call.grad.transpose(0, 1)
    return {"bias": PerUnit(call.units.by_unit(grad[:, -1], call.name).sum(1))}

"""Multi-head attention with projections of each unit's own, and with the masks that it drew."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.bare import tensors_in
from lightning_dp.gradients.replay import RandomState
from lightning_dp.gradients.units import UnitMap

__all__ = ("attend",)


def attend(
    module: nn.MultiheadAttention,
    values: Mapping[str, Tensor],
    inputs: Any,
    outputs: Sequence[Tensor],
    units: UnitMap,
    random_state: RandomState | None,
    name: str,
) -> list[Tensor]:
    """What the module returns with parameters ``(U, *shape)``.

    The projections are done outside, unit by unit; between them the module itself attends, with identity matrices for
    weights, so that every option of it holds and dropout draws the masks that it drew before.

    Args:
        module: the attention.
        values: parameters by name; those missing are shared.
        inputs: the recorded ``(args, kwargs)``.
        outputs: what it returned.
        units: which rows belong to which unit.
        random_state: the generators' state before the call, or ``None`` where it draws nothing.
        name: for messages.
    """
    if module.bias_k is not None:
        raise PrivacyError(
            f"{name} has a learned extra key and value (add_bias_kv=True), which bias-aware minimisation does not cover. Build "
            "it without, freeze it, or use DPStrategy."
        )
    bound = inspect.signature(module.forward).bind(*inputs[0], **inputs[1])
    arguments: dict[str, Any] = dict(bound.arguments)
    given = [arguments.pop(key) for key in ("query", "key", "value")]
    dtype = next(iter(values.values())).dtype

    def own(parameter: str) -> Tensor | None:
        shared = dict(module.named_parameters()).get(parameter)
        if parameter in values or shared is None:
            return values.get(parameter)
        return shared.detach().expand(units.num_units, *shared.shape)

    def project(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        rows = x if module.batch_first else x.transpose(0, 1)
        grouped = units.by_unit(rows.to(dtype), name)
        assert weight is not None
        out = grouped.flatten(1, 2) @ weight.mT
        out = (out if bias is None else out + bias.unsqueeze(1)).view(*grouped.shape[:-1], -1)
        out = units.by_row(out, rows.shape[0], name)
        return out if module.batch_first else out.transpose(0, 1)

    joint = own("in_proj_weight")
    weights = [own(f"{kind}_proj_weight") for kind in "qkv"] if joint is None else list(joint.chunk(3, 1))
    bias = own("in_proj_bias")
    biases = [None] * 3 if bias is None else list(bias.chunk(3, 1))
    projected = [project(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]
    with nullcontext() if random_state is None else random_state.replayed():
        results = torch.func.functional_call(module, _identities(module, dtype), tuple(projected), arguments)
    found = [t for t in tensors_in(results) if t.is_floating_point()]
    found[0] = project(found[0], own("out_proj.weight"), own("out_proj.bias"))
    return [result.to(output.dtype) for result, output in zip(found, outputs, strict=True)]


def _identities(module: nn.MultiheadAttention, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters with which every projection is the identity."""
    eye = torch.eye(module.embed_dim, dtype=dtype, device=module.out_proj.weight.device)
    found = {}
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            found[name] = torch.zeros_like(parameter)
        else:
            found[name] = torch.cat([eye] * 3) if name == "in_proj_weight" else eye
    return found

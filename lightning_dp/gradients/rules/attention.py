"""Multi-head attention as it is: ``nn.MultiheadAttention`` with every option, and so PyTorch's transformers.

The module hands its weights to one function, in which no projection's gradient shows. The rule attends again from the
recorded inputs (with the same dropout masks), hands the output gradients back as far as the projections' outputs, and has
every weight's gradient as a sum of outer products over positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients.contributions import Contribution, OuterProduct, PerUnit
from lightning_dp.gradients.replay import reproduces
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("attention_rule",)

WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v")


@dataclass(frozen=True)
class Projections:
    """The projected queries, keys and values ``(T, N, E)``, and the learned extra key and value ``(1, N, E)``."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias_k: Tensor | None
    bias_v: Tensor | None


def _count_rows(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    assert isinstance(module, nn.MultiheadAttention)
    query = args[0] if args else kwargs["query"]
    return int(query.shape[0 if module.batch_first or query.dim() == 2 else 1])


def _drops(module: nn.Module) -> bool:
    assert isinstance(module, nn.MultiheadAttention)
    return module.training and module.dropout > 0


def _is_plain(module: nn.Module) -> bool:
    """Its weights are its own, and the output projection is the linear layer that PyTorch put there."""
    out = getattr(module, "out_proj", None)
    own = all(name in module._parameters for name in WEIGHTS if getattr(module, name) is not None)
    return own and type(out) is NonDynamicallyQuantizableLinear and {"weight", "bias"} <= set(out._parameters)


@register_rule(nn.MultiheadAttention, rows=_count_rows, random=_drops, applies=_is_plain)
def attention_rule(call: LayerCall) -> dict[str, Contribution]:
    """Attends again and makes sure, where dropout is on, that the recorded output comes out."""
    module = call.module
    assert isinstance(module, nn.MultiheadAttention)
    arguments = call.arguments()
    given = [arguments[key] for key in ("query", "key", "value")]
    if any(t.is_nested or t.dim() != 3 for t in given):
        raise PrivacyError(
            f"{call.name} was called without a batch axis or with nested tensors, so its rows cannot be assigned to "
            "units. Call it with three-dimensional tensors."
        )
    inputs = [(t.transpose(0, 1) if module.batch_first else t).to(call.dtype) for t in given]
    with torch.enable_grad():
        projected = _project(module, inputs, call.dtype)
        if call.random_state is None:
            context, results = _attend(module, projected, arguments, call.dtype)
        else:
            with call.random_state.replayed():
                context, results = _attend(module, projected, arguments, call.dtype)
            _verify(call, module, results)
        wanted = [
            t for t in (projected.q, projected.k, projected.v, projected.bias_k, projected.bias_v) if t is not None
        ]
        grads = _rows_first(module, call.grads, call.dtype)
        used = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
        found = torch.autograd.grad(
            [r for r, _ in used], wanted, [g for _, g in used], allow_unused=True, materialize_grads=True
        )
    # Where the loss used the attention weights alone, no gradient passed the output projection.
    grad = context.new_zeros(context.shape) if grads[0] is None else grads[0].transpose(0, 1)
    return _input_contributions(call, inputs, found, _are_one(given)) | _output_contributions(
        call, context.detach(), grad
    )


def _project(module: nn.MultiheadAttention, inputs: list[Tensor], dtype: torch.dtype) -> Projections:
    if module._qkv_same_embed_dim:
        weights = list(module.in_proj_weight.detach().to(dtype).chunk(3))
    else:
        separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = [w.detach().to(dtype) for w in separate]
    biases: list[Tensor | None] = [None] * 3
    if module.in_proj_bias is not None:
        biases = list(module.in_proj_bias.detach().to(dtype).chunk(3))
    q, k, v = (F.linear(*t).requires_grad_() for t in zip(inputs, weights, biases, strict=True))
    if module.bias_k is None or module.bias_v is None:
        return Projections(q, k, v, None, None)
    rows = inputs[0].shape[1]
    extra = (b.detach().to(dtype).repeat(1, rows, 1).requires_grad_() for b in (module.bias_k, module.bias_v))
    return Projections(q, k, v, *extra)


def _attend(
    module: nn.MultiheadAttention, p: Projections, arguments: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The heads' outputs ``(L, N, E)``; and what the module returns, rows first."""
    length, rows, width = p.q.shape
    heads, dropout = module.num_heads, module.dropout if module.training else 0.0
    k, v = p.k, p.v
    if p.bias_k is not None and p.bias_v is not None:
        k, v = torch.cat([k, p.bias_k]), torch.cat([v, p.bias_v])
    if module.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
    mask, causal = _mask(arguments, rows, heads, p.k.shape[0], k.shape[0], dtype)
    q, k, v = (t.reshape(t.shape[0], rows, heads, -1).permute(1, 2, 0, 3) for t in (p.q, k, v))
    weights = None
    if arguments["need_weights"]:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        context = weights @ v
    else:
        context = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    context = context.permute(2, 0, 1, 3).reshape(length, rows, width)
    out = module.out_proj
    bias = None if out.bias is None else out.bias.detach().to(dtype)
    results = [F.linear(context, out.weight.detach().to(dtype), bias).transpose(0, 1)]
    if weights is not None:
        results.append(weights.mean(1) if arguments["average_attn_weights"] else weights)
    return context, results


def _mask(
    arguments: Mapping[str, Any], rows: int, heads: int, given: int, keys: int, dtype: torch.dtype
) -> tuple[Tensor | None, bool]:
    """What is added to the scores ``(N, heads, L, S)``, and whether the causal hint stands for it, as in PyTorch.

    The learned and the zero key, which follow the given ones, are seen by every query.
    """
    padding, mask = (arguments[key] for key in ("key_padding_mask", "attn_mask"))
    if arguments["is_causal"] and padding is None and not arguments["need_weights"]:
        return None, True
    total: Tensor | None = None
    if mask is not None:
        mask = _additive(mask, dtype)
        total = mask[None, None] if mask.dim() == 2 else mask.reshape(rows, heads, *mask.shape[1:])
    if padding is not None:
        padding = _additive(padding, dtype)[:, None, None, :]
        total = padding if total is None else total + padding
    return (None if total is None else F.pad(total, (0, keys - given))), False


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def _input_contributions(
    call: LayerCall, inputs: list[Tensor], found: tuple[Tensor, ...], self_attention: bool
) -> dict[str, Contribution]:
    rows, shapes = call.rows_of_sequence, {name: p.shape for name, p in call.module.named_parameters()}
    contributions: dict[str, Contribution] = {}
    grads = [rows(g) for g in found[:3]]
    if "in_proj_weight" in call.trainable:
        if self_attention:
            a, b = rows(inputs[0]).unsqueeze(1), torch.cat(grads, -1).unsqueeze(1)
        else:
            a, b = _side_by_side([rows(x) for x in inputs]), _side_by_side(grads)
        contributions["in_proj_weight"] = OuterProduct(a, b, shapes["in_proj_weight"])
    for name, x, grad in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), inputs, grads, strict=True):
        if name in call.trainable:
            contributions[name] = OuterProduct(rows(x).unsqueeze(1), grad.unsqueeze(1), shapes[name])
    if "in_proj_bias" in call.trainable:
        contributions["in_proj_bias"] = PerUnit(torch.cat([g.sum(1) for g in grads], -1))
    for name, grad in zip(("bias_k", "bias_v"), found[3:], strict=False):
        if name in call.trainable:
            contributions[name] = PerUnit(rows(grad).sum(1)[:, None, None])
    return contributions


def _output_contributions(call: LayerCall, context: Tensor, grad: Tensor) -> dict[str, Contribution]:
    contributions: dict[str, Contribution] = {}
    b = call.rows_of_sequence(grad)
    if "out_proj.weight" in call.trainable:
        a = call.rows_of_sequence(context).unsqueeze(1)
        shape = call.module.get_parameter("out_proj.weight").shape
        contributions["out_proj.weight"] = OuterProduct(a, b.unsqueeze(1), shape)
    if "out_proj.bias" in call.trainable:
        contributions["out_proj.bias"] = PerUnit(b.sum(1))
    return contributions


def _verify(call: LayerCall, module: nn.MultiheadAttention, results: list[Tensor]) -> None:
    recorded = _rows_first(module, call.outputs, call.dtype)
    low = call.random_state is not None and call.random_state.autocast
    if not all(reproduces(a, b, low) for a, b in zip(results, recorded, strict=True) if b is not None):
        raise PrivacyError(
            f"{call.name} drops attention weights inside one fused function, and its masks could not be drawn again here. "
            "Set the attention's dropout to 0 (layer.self_attn.dropout = 0.0 in nn.TransformerEncoderLayer; its other "
            "dropouts may stay)."
        )


def _rows_first(
    module: nn.MultiheadAttention, tensors: tuple[Tensor | None, ...], dtype: torch.dtype
) -> list[Tensor | None]:
    """Output and attention weights with the batch on axis 0, where the weights have it in either layout."""
    moved: list[Tensor | None] = [None if t is None else t.to(dtype) for t in tensors]
    first = moved[0]
    if first is not None and not module.batch_first:
        moved[0] = first.transpose(0, 1)
    return moved


def _are_one(inputs: list[Tensor]) -> bool:
    """Self-attention: one tensor three times."""
    first = inputs[0]
    return all(
        t.data_ptr() == first.data_ptr() and t.shape == first.shape and t.stride() == first.stride() for t in inputs
    )


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Three ``(U, T, d)`` of their own length as the groups of one ``(U, 3, T, d)``, filled up with zeros."""
    longest = max(p.shape[1] for p in parts)
    return torch.stack([F.pad(p, (0, 0, 0, longest - p.shape[1])) for p in parts], 1)

"""Linear layers and embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution, EmbeddingRows, OuterProduct, PerUnit
from lightning_dp.gradients.rules.registry import LayerCall, register_rule

__all__ = ("embedding_rule", "linear_rule", "transposed_linear_rule")


@register_rule(nn.Linear, "torch_geometric.nn.dense.linear.Linear", complex_too=True)
def linear_rule(call: LayerCall) -> dict[str, Contribution]:
    """``y = x W^T + b`` on inputs of any rank: every axis between the first and the last is a position."""
    call.refuse_without_batch(call.grad.dim() > 1)
    b = call.units.by_unit(call.grad, call.name).flatten(1, -2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        weight: Tensor = call.module.weight  # type: ignore[assignment]
        a = call.units.by_unit(call.x.conj_physical(), call.name).flatten(1, -2)
        found["weight"] = OuterProduct(a.unsqueeze(1), b.unsqueeze(1), weight.shape)
    if "bias" in call.trainable:
        found["bias"] = PerUnit(b.flatten(0, 1) if b.shape[1] == 1 else b.sum(1))
    return found


@register_rule("transformers.pytorch_utils.Conv1D")
def transposed_linear_rule(call: LayerCall) -> dict[str, Contribution]:
    """``y = x W + b``: the linear layer of GPT-2, whose weight lies the other way round."""
    call.refuse_without_batch(call.grad.dim() > 1)
    b = call.units.by_unit(call.grad, call.name).flatten(1, -2)
    found: dict[str, Contribution] = {}
    if "weight" in call.trainable:
        a = call.units.by_unit(call.x, call.name).flatten(1, -2)
        found["weight"] = OuterProduct(b.unsqueeze(1), a.unsqueeze(1), call.module.get_parameter("weight").shape)
    if "bias" in call.trainable:
        found["bias"] = PerUnit(b.sum(1))
    return found


@register_rule(nn.Embedding)
def embedding_rule(call: LayerCall) -> dict[str, Contribution]:
    """A table look-up; the padding row gets no gradient, as in PyTorch."""
    module = call.module
    assert isinstance(module, nn.Embedding)
    index = call.units.by_unit(call.x, call.name).flatten(1)
    b = call.units.by_unit(call.grad, call.name).flatten(1, -2)
    if module.padding_idx is not None:
        b = b.masked_fill((index == module.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": EmbeddingRows(index, b, module.weight.shape)}

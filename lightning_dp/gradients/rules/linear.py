"""Linear layers and embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_dp.gradients.contributions import Contribution, EmbeddingRows, OuterProduct, PerUnit
from lightning_dp.gradients.rules.registry import register_rule
from lightning_dp.gradients.units import UnitMap

__all__ = ("embedding_rule", "linear_rule")


@register_rule(nn.Linear)
def linear_rule(
    module: nn.Module, x: Tensor, grad: Tensor, units: UnitMap, trainable: frozenset[str], name: str
) -> dict[str, Contribution]:
    """``y = x W^T + b`` on inputs of any rank: every axis between the first and the last is a position."""
    b = units.by_unit(grad, name).flatten(1, -2)
    found: dict[str, Contribution] = {}
    if "weight" in trainable:
        a = units.by_unit(x, name).flatten(1, -2)
        found["weight"] = OuterProduct(a.unsqueeze(1), b.unsqueeze(1), module.get_parameter("weight").shape)
    if "bias" in trainable:
        found["bias"] = PerUnit(b.sum(1))
    return found


@register_rule(nn.Embedding)
def embedding_rule(
    module: nn.Module, x: Tensor, grad: Tensor, units: UnitMap, trainable: frozenset[str], name: str
) -> dict[str, Contribution]:
    """A table look-up; the padding row gets no gradient, as in PyTorch."""
    assert isinstance(module, nn.Embedding)
    index = units.by_unit(x, name).flatten(1)
    b = units.by_unit(grad, name).flatten(1, -2)
    if module.padding_idx is not None:
        b = b.masked_fill((index == module.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": EmbeddingRows(index, b, module.weight.shape)}

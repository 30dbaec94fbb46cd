"""Layers that see the batch on axis 1, because PyTorch's own transformers put it there.

``nn.Transformer`` and its parts with ``batch_first=False`` (the default) pass ``(T, B, E)`` through linear and
normalisation layers, which do not care; whoever asks which rows belong to which unit does. What these classes call is
known, so the layers concerned are found in the tree of modules; so it is for Opacus' own attention. Other
sequence-first networks are not guessed at: they are refused when the number of rows per unit changes.
"""

from __future__ import annotations

from torch import nn

__all__ = ("sequence_first",)

LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)
OPACUS_ATTENTION = "opacus.layers.dp_multihead_attention.DPMultiheadAttention"


def sequence_first(root: nn.Module) -> frozenset[nn.Module]:
    """The linear and normalisation layers below ``root`` that are called with ``(T, B, ...)`` tensors.

    The projections of Opacus' attention; otherwise only in layers and stacks of PyTorch's exact classes (a subclass may
    move axes as it likes), and only their own parts without further parts. PyTorch's attention is not among them: its
    rule reads ``batch_first`` itself.
    """
    found: set[nn.Module] = set()
    for module in root.modules():
        if _is_opacus_attention(module) and not module.batch_first:
            found.update(part for part in module.children() if isinstance(part, nn.Linear))
        stack = getattr(module, "layers", None)  # which in other people's classes may be anything
        layers = [module] if type(module) in LAYERS else list(stack) if isinstance(stack, nn.ModuleList) else []
        if type(module) not in LAYERS + STACKS or not layers or not all(_is_sequence_first(part) for part in layers):
            continue
        found.update(part for part in module.children() if not any(True for _ in part.children()))
    return frozenset(found)


def _is_sequence_first(layer: nn.Module) -> bool:
    attention = getattr(layer, "self_attn", None)
    known = isinstance(attention, nn.MultiheadAttention) or _is_opacus_attention(attention)
    return type(layer) in LAYERS and known and not attention.batch_first  # type: ignore[union-attr]


def _is_opacus_attention(module: object) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == OPACUS_ATTENTION

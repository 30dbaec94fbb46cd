"""Dropout switched off inside training mode, so that two batches of unequal shapes can be compared.

Which mask an element gets depends on its place in the batch. Beside longer texts or larger graphs a sample's elements lie
elsewhere, get other masks and another gradient, although nothing couples the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

__all__ = ("without_dropout",)

_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_,
        torch.feature_dropout, torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_,
    }
)  # fmt: skip
_ATTENTION: dict[Callable[..., Any], int] = {
    F.scaled_dot_product_attention: 4,
    F.multi_head_attention_forward: 10,
}
"""Functions with a ``dropout_p``, and its place among their arguments."""
_FUSED = (nn.RNNBase, nn.MultiheadAttention)
"""Layers that drop inside one function, by their attribute ``dropout``."""


@contextmanager
def without_dropout(root: nn.Module) -> Iterator[None]:
    """Within this context PyTorch's dropout functions drop nothing, whatever mode ``root`` and its parts are in.

    That covers ``nn.Dropout`` and its relatives, ``F.dropout``, and the dropout inside attention and recurrent layers. Masks
    that a network makes by itself (``torch.rand(...) > p``) are drawn as ever.
    """
    # A backward pass runs outside every function mode. Activation checkpointing repeats forward passes in it, so each
    # module switches dropout off by itself, too; and the rules of fused layers repeat them by the layers' own settings.
    fused = {module: module.dropout for module in root.modules() if isinstance(module, _FUSED)}
    running: list[ExitStack] = []

    def enter(*_: Any) -> None:
        running.append(ExitStack())
        running[-1].enter_context(_NothingDrops())

    def leave(*_: Any) -> None:
        running.pop().close()

    handles = []
    for module in root.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        for module in fused:
            module.dropout = 0.0
        with _NothingDrops():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, dropout in fused.items():
            module.dropout = dropout


class _NothingDrops(TorchFunctionMode):
    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func in _ATTENTION:
            place = _ATTENTION[func]
            args = [*args[:place], *(0.0 for _ in args[place : place + 1]), *args[place + 1 :]]
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)

"""From the features of a volume's slices to one feature vector: attention with readable weights, and its alternatives."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from lightning_dp.errors import PrivacyConfigError

__all__ = (
    "LSTMPooling",
    "MaxPooling",
    "MeanPooling",
    "MeanQueryAttention",
    "Pooling",
    "TransformerPooling",
    "pooling_of",
)

Pooling = Literal["attention", "mean", "max", "lstm", "transformer"]


class MeanQueryAttention(nn.Module):
    """The mean of the slices' features asks, the slices answer: multi-head attention with a single query.

    No position is encoded, so that the order of the slices does not matter (Ziller et al. 2023, arXiv 2307.06614).

    Args:
        features: width of the features.
        num_heads: heads; must divide the width.
    """

    def __init__(self, features: int, num_heads: int = 8) -> None:
        super().__init__()
        _check_heads(features, num_heads)
        self.attention = nn.MultiheadAttention(features, num_heads, batch_first=True)

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """``(N, S, F)`` to ``(N, F)``."""
        pooled, _ = self.attention(slices.mean(1, keepdim=True), slices, slices, need_weights=False)
        return pooled.squeeze(1)  # type: ignore[no-any-return]

    def weights(self, slices: Tensor, per_head: bool = False) -> Tensor:
        """How much of each slice there is in the answer: ``(N, S)``, or ``(N, heads, S)``; not negative, with the sum 1."""
        query = slices.mean(1, keepdim=True)
        _, weights = self.attention(query, slices, slices, need_weights=True, average_attn_weights=not per_head)
        return weights.squeeze(-2)  # type: ignore[no-any-return]


class MeanPooling(nn.Module):
    """The mean over the slices."""

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """``(N, S, F)`` to ``(N, F)``."""
        return slices.mean(1)


class MaxPooling(nn.Module):
    """The largest value of each feature over the slices; slices that attain it together share its gradient."""

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """``(N, S, F)`` to ``(N, F)``."""
        return slices.amax(1)


class LSTMPooling(nn.Module):
    """The last state of an LSTM that reads the slices one after the other; their order matters.

    Args:
        features: width of the features and of the states.
        layers: layers of the LSTM.
    """

    def __init__(self, features: int, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, num_layers=layers, batch_first=True)

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """``(N, S, F)`` to ``(N, F)``."""
        _, (states, _) = self.lstm(slices)
        return states[-1]  # type: ignore[no-any-return]


class TransformerPooling(nn.Module):
    """A transformer: the encoder reads the slices, the decoder is asked by their mean.

    Args:
        features: width of the features.
        num_heads: heads; must divide the width.
        layers: layers of the encoder, and of the decoder.
    """

    def __init__(self, features: int, num_heads: int = 8, layers: int = 1) -> None:
        super().__init__()
        _check_heads(features, num_heads)
        # Dropout is left out: its masks would have to be drawn again for every norm, and noise already regularises.
        self.transformer = nn.Transformer(
            features, num_heads, layers, layers, 2 * features, dropout=0.0, batch_first=True
        )

    @override
    def forward(self, slices: Tensor) -> Tensor:
        """``(N, S, F)`` to ``(N, F)``."""
        pooled: Tensor = self.transformer(slices, slices.mean(1, keepdim=True))
        return pooled.squeeze(1)


def pooling_of(kind: Pooling, features: int, num_heads: int) -> nn.Module:
    """The pooling of that name.

    Raises:
        PrivacyConfigError: for an unknown name, or heads that do not divide the features.
    """
    if kind == "attention":
        return MeanQueryAttention(features, num_heads)
    if kind == "transformer":
        return TransformerPooling(features, num_heads)
    if kind == "lstm":
        return LSTMPooling(features)
    if kind in ("mean", "max"):
        return MeanPooling() if kind == "mean" else MaxPooling()
    raise PrivacyConfigError(
        f"pooling={kind!r} is unknown; choose 'attention', 'mean', 'max', 'lstm' or 'transformer'."
    )


def _check_heads(features: int, num_heads: int) -> None:
    if num_heads < 1 or features % num_heads:
        raise PrivacyConfigError(
            f"{num_heads} heads cannot share {features} features evenly. Choose num_heads or feature_dim so that one "
            "divides the other."
        )

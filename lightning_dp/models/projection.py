"""Fixed random features of a chosen dimension, for mechanisms whose noise grows with the dimension."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError

__all__ = ("ProjectedLinear", "RandomProjection")


class RandomProjection(nn.Module):
    """A Gaussian projection of each flattened sample, brought to length 1: a fixed function that saw no data.

    Distances are kept up to a factor that shrinks with ``out_features`` (Johnson and Lindenstrauss 1984). A sample's output
    depends on that sample alone, so nothing is learnt and nothing is spent. Its length of 1 makes full use of a clipping
    bound of 1.

    Args:
        in_features: elements of a sample.
        out_features: dimension d of the result.
        seed: of the projection; public.

    Shape:
        ``(N, ...)`` with ``in_features`` elements a sample -> ``(N, out_features)``.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, seed: int = 0) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise PrivacyConfigError(
                f"in_features and out_features must be at least 1, got {in_features} and {out_features}."
            )
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(out_features, in_features, generator=generator) / math.sqrt(out_features)
        # Rebuilt from its seed: a checkpoint need not hold it.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(F.linear(x.flatten(1), self.weight))


class ProjectedLinear(nn.Module):
    """A linear classifier on standardised random projections: ``features``, to be released, and ``head``, to be trained.

    The head standardises its inputs over the batch, which is allowed downstream of a release and brings noisy vectors to
    one scale whatever their noise. Its running statistics are cumulative averages.

    Args:
        in_features: elements of a sample.
        projected: dimension of what is released.
        out_features: number of outputs.
        seed: of the projection; public.

    Shape:
        ``(N, ...)`` with ``in_features`` elements a sample -> ``(N, out_features)``.
    """

    def __init__(self, in_features: int, projected: int = 256, out_features: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.features = RandomProjection(in_features, projected, seed)
        linear = nn.Linear(projected, out_features)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.BatchNorm1d(projected, affine=False, momentum=None), linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(x))
        return logits

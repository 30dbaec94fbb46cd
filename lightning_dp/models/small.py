"""Small image networks that train well under per-sample clipping and noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ("TemperedCNN", "TemperedSigmoid")


class TemperedSigmoid(nn.Module):
    """``scale / (1 + exp(-temperature * x)) - offset``, a bounded activation; ``(2, 2, 1)`` is the hyperbolic tangent.

    Bounded activations keep the activations, and with them the per-sample gradient norms, from growing over training, so that
    clipping at a fixed norm distorts less (Papernot et al. 2021, "Tempered Sigmoid Activations for Deep Learning with
    Differential Privacy", arXiv 2007.14191, eq. 1).

    Args:
        scale: Height of the range.
        temperature: Inverse width of the transition.
        offset: Shift of the range, which is ``(-offset, scale - offset)``.
    """

    def __init__(self, scale: float = 2.0, temperature: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        self.scale, self.temperature, self.offset = scale, temperature, offset

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to each element."""
        return self.scale * torch.sigmoid(self.temperature * x) - self.offset

    def extra_repr(self) -> str:
        """The three constants."""
        return f"scale={self.scale}, temperature={self.temperature}, offset={self.offset}"

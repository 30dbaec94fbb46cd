"""The point one step along the last private gradient, which all units share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ("PreviousAscent",)


class PreviousAscent:
    """Moves the parameters along the gradient that was released last, for the time of one gradient (DP-SAT).

    **Guarantee**: it reads released gradients and public parameters alone, so the point is post-processing of earlier
    steps; the gradient taken there is privatised as anywhere else.

    Args:
        radius: how far, in L2 norm over all parameters.
    """

    def __init__(self, radius: float) -> None:
        self.radius = radius
        self._released: list[tuple[nn.Parameter, Tensor]] = []
        self._loaded: list[Tensor] = []

    def remember(self, parameters: Sequence[nn.Parameter]) -> None:
        """Keeps the private gradients that were just written to ``.grad``."""
        self._released = [(p, p.grad.detach().clone()) for p in parameters if p.grad is not None]

    def start(self, parameters: Sequence[nn.Parameter]) -> None:
        """A run begins: with an ordinary step, unless a checkpoint says how it goes on."""
        gradients, self._loaded = self._loaded, []
        fits = [g.shape for g in gradients] == [p.shape for p in parameters]
        pairs = zip(parameters, gradients, strict=True) if fits else ()
        self._released = [(p, g.to(p)) for p, g in pairs]

    def state_dict(self) -> list[Tensor]:
        """The gradients that were released last; for a checkpoint, which holds what came of them anyway."""
        return [gradient for _, gradient in self._released]

    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Takes what :meth:`state_dict` gave, for the run that starts next."""
        self._loaded = list(state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters at the moved point within the block; afterwards, whatever happened, the very bits they had."""
        squares = sum(float(g.double().square().sum()) for _, g in self._released)
        if not 0 < squares < float("inf"):
            yield
            return
        before = [(p, p.detach().clone()) for p, _ in self._released]
        try:
            with torch.no_grad():
                for parameter, gradient in self._released:
                    parameter.add_(gradient, alpha=self.radius / squares**0.5)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in before:
                    parameter.copy_(value)

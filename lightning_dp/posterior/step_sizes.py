"""Step sizes that fall as Langevin dynamics asks."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_dp.accounting.temperature import positive
from lightning_dp.errors import PrivacyConfigError

__all__ = ("PolynomialStepSize",)


class PolynomialStepSize(LRScheduler):
    """Step sizes ``lr_t = lr (1 + t/offset)^-decay``, which is ``a (b + t)^-gamma`` with ``a = lr b^gamma``.

    With ``decay`` in (0.5, 1] the steps sum to infinity and their squares do not, as stochastic gradient Langevin dynamics
    asks (Welling & Teh 2011). The noise of a private run is fixed by its eps, so the temperature falls with the step
    size. An ordinary torch scheduler: step it after every optimizer step (``interval: "step"`` in Lightning).

    Args:
        optimizer: whose learning rates to move.
        offset: b, in steps: where the decay sets in.
        decay: gamma, in (0.5, 1].
        last_epoch: as in torch.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    def __init__(self, optimizer: Optimizer, offset: float = 100.0, decay: float = 0.55, last_epoch: int = -1) -> None:
        self.offset = positive("offset", offset)
        if not 0.5 < decay <= 1:
            raise PrivacyConfigError(
                f"decay={decay!r} must lie in (0.5, 1]: smaller, and the gradients' noise does not average out; larger, and "
                "the chain stops short of where it should go"
            )
        self.decay = float(decay)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the coming step."""
        return [base * (1 + self.last_epoch / self.offset) ** -self.decay for base in self.base_lrs]

"""The self-check of bias-aware minimisation: a few units' mixed gradients, from the engine and from a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Ascent, Clipping, GradientEngine, Randomness, UnitMap
from lightning_dp.gradients.bare import tensors_in
from lightning_dp.strategies.probe import UNCLIPPED
from lightning_dp.strategies.selfcheck import Checks

__all__ = ("AscentChecks", "refuse_changed", "versions")

DIFFERS = (
    "the gradient of one sample at a point of its own differs from plain PyTorch's by {error:.1%}. A layer computes something "
    "other than its class says, or the second run of training_step on a batch differs from the first (random numbers from "
    "a generator of its own, a counter, a cache). Make training_step repeatable, or use DPStrategy."
)


class AscentChecks(Checks):
    """The checks of DP-SGD, and then the same questions to the mixed gradients.

    Args:
        *checked: as for :class:`Checks`.
        ascent: how gradients are mixed.
    """

    def __init__(self, *checked: Any, ascent: Ascent) -> None:
        super().__init__(*checked)
        self.ascent = ascent
        self._mixes = False

    @override
    def mechanism_is_right(self) -> None:
        """A unit's mixed gradient is what a plain loop computes, and stays what it is when the other units change."""
        self._mixes = True
        for unit in sorted({0, len(self.units) - 1}):
            self._compare(self.private_gradient([unit], [1.0]), self.plain_mixture(unit), DIFFERS)
        self.units_are_independent()

    @override
    def private_gradient_of(self, batch: Any, units: UnitMap, weights: Sequence[float]) -> Tensor:
        if not self._mixes:
            return super().private_gradient_of(batch, units, weights)
        with GradientEngine(
            self.module,
            Clipping(UNCLIPPED),
            noise_multiplier=0.0,
            expected_batch_size=1,
            loss_reduction=self.loss_reduction,
            row_memory=self.row_memory,
        ) as engine:
            before, state = versions(batch), self._randomness()
            engine.expect(units)
            loss = self.loss_of(batch)
            with engine.mixing(units, self.ascent, torch.tensor(weights)) as passes:
                with passes.first():
                    loss.backward()  # type: ignore[no-untyped-call]
                refuse_changed(batch, before)
                with passes.again():
                    with state.replayed():
                        again = self.loss_of(batch)
                    with passes.second():
                        again.backward()  # type: ignore[no-untyped-call]
            return torch.cat([g.flatten() for g in engine.clipped_sum()])

    def plain_mixture(self, unit: int) -> Tensor:
        """The mixed gradient of a unit's own loss by its definition: differentiate, move the parameters, differentiate."""
        batch = self.batch(list(self.units[unit]))
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        state, scale = self._randomness(), 1.0 if self.loss_reduction == "mean" else 1.0 / len(self.units[unit])

        def gradient() -> list[Tensor]:
            with state.replayed():
                grads = torch.autograd.grad(self.loss_of(batch), parameters, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]

        first, before = gradient(), [p.detach().clone() for p in parameters]
        norm = float(torch.cat([g.flatten().double() for g in first]).norm())
        with torch.no_grad():
            for parameter, g in zip(parameters, first, strict=True):
                parameter.add_(g, alpha=self.ascent.radius / norm if norm > 0 else 0.0)
        second = gradient()
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        mixed = [(1 - self.ascent.alpha) * a + self.ascent.alpha * b for a, b in zip(first, second, strict=True)]
        return torch.cat([g.flatten() for g in mixed]) * scale

    def _randomness(self) -> Randomness:
        return Randomness.capture(next(self.module.parameters()).device)


def versions(batch: Any) -> tuple[int, ...]:
    """How often each tensor of a batch was changed in place."""
    return tuple(t._version for t in tensors_in(batch))


def refuse_changed(batch: Any, before: tuple[int, ...]) -> None:
    """Raises PrivacyError if the batch is no longer what it was: the second pass would see other data."""
    if versions(batch) != before:
        raise PrivacyError(
            "training_step changes its batch in place, so that a second pass over it would see other data. Work on a copy "
            "(x = x / 255 instead of x.div_(255)), or use DPStrategy."
        )

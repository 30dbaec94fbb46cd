"""The clipping bound of a run: fixed, moved by a schedule, or moved by what was released."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_dp.accounting import Schedule
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import AdaptiveThreshold, Clipping

__all__ = ("Bound",)


class Bound:
    """Knows the bound of every step. The noise takes its scale from the same object, so it moves along.

    Args:
        clipping: fixed, or a threshold that adapts.
        schedule: factors on a fixed bound.
        noise_schedule: factors on the noise multiplier, which an adapting threshold must be able to follow.

    Raises:
        PrivacyConfigError: if two of them would move the bound, or the threshold's own noise cannot follow.
    """

    def __init__(
        self, clipping: Clipping | AdaptiveThreshold, schedule: Schedule | None, noise_schedule: Schedule | None
    ) -> None:
        self.threshold = clipping if isinstance(clipping, AdaptiveThreshold) else None
        self.first = clipping.clipping if isinstance(clipping, AdaptiveThreshold) else clipping
        self.schedule = schedule
        if self.threshold is None:
            return
        if schedule is not None:
            raise PrivacyConfigError(
                "adaptive clipping moves the bound by itself, and max_grad_norm_schedule would move it too. Choose one."
            )
        if noise_schedule is not None and self.threshold.config.count_noise is not None:
            raise PrivacyConfigError(
                "with a noise schedule the count of unclipped samples needs noise that follows it. Use "
                "AdaptiveClipping(count_noise=None)."
            )

    @property
    def name(self) -> str:
        """How units are clipped, for reports."""
        return self.first.name if self.threshold is None else "adaptive"

    def at(self, step: int, planned: float) -> Clipping:
        """The clipping in force at logical step number ``step`` of ``planned``."""
        if self.threshold is not None:
            return self.threshold.clipping
        if self.schedule is None:
            return self.first
        return replace(self.first, max_grad_norm=self.first.max_grad_norm * self.schedule.factor(step, planned))

    def gradient_noise_multiplier(self, noise_multiplier: float, expected_batch_size: float) -> float | None:
        """The gradients' noise multiplier where it is not that of the whole step."""
        if self.threshold is None:
            return None
        return self.threshold.config.gradient_noise_multiplier(noise_multiplier, expected_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must know; nothing unless the bound adapts."""
        return {} if self.threshold is None else {"threshold": self.threshold.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        if self.threshold is not None and "threshold" in state:
            self.threshold.load_state_dict(state["threshold"])

"""The logical step under way: one draw, one or several physical batches, one gradient."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import UnitMap
from lightning_dp.sampling import LogicalStep

__all__ = ("StepUnderWay", "step_arguments", "unit_map")


class StepUnderWay:
    """Follows a draw from the loader to its one backward pass a physical batch and its one release.

    **Guarantee**: every physical batch of a draw enters the sum exactly once, and the sum is released exactly once. User
    code may call closures in any order; what would count a sample twice, or release a draw twice, raises PrivacyError.
    """

    def __init__(self) -> None:
        self._draw: LogicalStep | None = None
        self._chunk = 0
        self._done = 0

    @property
    def number(self) -> int:
        """The logical step's number. Raises PrivacyError if none is under way."""
        return self.draw.step

    @property
    def draw(self) -> LogicalStep:
        """The draw under way. Raises PrivacyError if there is none."""
        if self._draw is None:
            raise PrivacyError(
                "no private step is under way: its gradient was released before (an optimizer that evaluates the closure "
                "several times, as LBFGS or SAM do, or a second step on one batch), or the call came from outside fit. Only "
                "the first evaluation is accounted: use a first-order optimizer and step once on every batch."
            )
        return self._draw

    def begin(self, draw: LogicalStep) -> None:
        """Starts with a new draw; the one before must have been released, or not used at all."""
        if self._draw is not None and self._done:
            raise PrivacyError(
                "the last batch's gradient was accumulated but no optimizer step followed (an optimizer_step that only "
                "calls the closure): a sample could count once for each batch it is in. Step on every batch, and use "
                "DPStrategy(physical_batch_size=...) for memory."
            )
        self._draw, self._chunk, self._done = draw, 0, 0

    def go_to(self, chunk: int) -> None:
        """Turns to physical batch number ``chunk``."""
        self._chunk = chunk

    @property
    def samples(self) -> UnitMap:
        """Whose the samples of the current physical batch are."""
        draw = self.draw
        return unit_map(draw.sizes[self._chunk], draw.rows_per_unit, draw.rows[self._chunk] if draw.rows else None)

    def enter_backward(self) -> Tensor | None:
        """Counts the backward pass of the current physical batch; returns the units' weights."""
        draw = self.draw
        if self._done != self._chunk:
            raise PrivacyError(
                "the closure was evaluated twice on one batch, so each sample would count twice, clipped once. Call either "
                "optimizer.step(closure=closure), or closure() and then optimizer.step(), in optimizer_step."
            )
        self._done += 1
        # A stand-in keeps user code, logs and collectives in step on an empty draw; it must weigh exactly nothing.
        return None if draw.real[self._chunk] else torch.zeros(self.samples.num_units)

    def allow_another_backward(self) -> None:
        """After a release on a draw that may feed several, of one optimizer each."""
        self._done = 0

    def end(self) -> None:
        """Closes the step: its sum is released, or forgotten."""
        self._draw = None


def unit_map(size: int, rows_per_unit: int, rows: tuple[int, ...] | None) -> UnitMap:
    """Whose the samples of one physical batch are, stored unit by unit; the loss is a mean (or sum) over samples.

    Args:
        size: number of samples.
        rows_per_unit: how many each unit owns.
        rows: how many each unit owns where they differ; ``None`` where they do not.
    """
    if rows is not None:
        terms = torch.tensor(rows)
        return UnitMap(len(rows), torch.arange(len(rows)).repeat_interleave(terms), terms)
    units = size // rows_per_unit
    return UnitMap(units, terms=None if rows_per_unit == 1 else torch.full((units,), rows_per_unit))


def step_arguments(module: LightningModule, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """What Lightning passes to ``training_step``, which may do without ``batch_idx``."""
    wants_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return (batch, batch_idx) if wants_index else (batch,)

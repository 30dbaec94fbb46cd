"""Three checks on a copy of the module before the first step: does this network, as it is, fit the guarantee?

The table of refusals knows class names; these checks know behaviour. (a) A unit's gradient must not change when the
other units of the batch change: this catches batch normalisation in disguise, contrastive losses and means over valid
tokens. (b) A training step must not write private data into buffers or parameters. (c) The engine's gradients must match plain
PyTorch's. They run on a deep copy with logging muted, on a few samples, and release nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import LossReduction, RowMemory, UnitMap
from lightning_dp.gradients.bare import tensors_in
from lightning_dp.sampling import UnitRows
from lightning_dp.strategies.muted import muted_copy
from lightning_dp.strategies.probe import Probe, Step
from lightning_dp.strategies.undropped import without_dropout

__all__ = ("Checks", "check_module", "muted_copy")

TOLERANCE = 1e-2  # of the larger gradient's norm; a coupling or a wrong rule errs by far more, rounding by far less
PART_TOLERANCE = 1e-1  # of one parameter's own gradient ...
PART_FLOOR = 2e-5  # ... unless that is of the size of the whole gradient's rounding errors
LOW_PRECISION_TOLERANCE = 1e-1  # bfloat16 keeps 8 bits
MOST_SAMPLES = 1000  # looked at for kinds of rows; what so many do not tell apart has equal maps in all but odd data

COUPLED = (
    "the gradient of one sample changes by {error:.1%} when the other samples of its batch change, so clipping it bounds "
    "nothing. Something couples the samples: a normalisation over the batch, a contrastive or ranking loss, a mean over "
    "valid tokens, nodes or class weights of the whole batch (cross_entropy(..., weight=...) divides by the weights that were "
    "drawn; reduction='none' and .mean() do not). Make the loss a mean over samples of terms that depend on one sample each."
)
NOT_ALONE = (
    "the gradient of one sample alone and beside others differs by {error:.1%}: the loss couples the samples of a batch or "
    "depends on how many there are. Make it a mean over samples of terms that depend on one sample each."
)
PADDED = (
    " Here batches are padded to their longest sample, and padding may be what reaches the gradient: through the last time "
    "step, a recurrent layer that runs backwards, a mean over all positions, or over the valid tokens of the batch. Pack the "
    "sequences (pack_padded_sequence), mask the padding, average over each sample's own tokens, or pad all to one length."
)
REORDERED = (
    "collate_fn (or a batch-transfer hook) changes the order of the samples, so that row i of a batch is not the i-th sample "
    "drawn, and nobody can say whose gradient it gives. Keep the order: pack_padded_sequence and pack_sequence need no "
    "sorting with enforce_sorted=False."
)
CARRIED = (
    "a training step repeated on the same samples gave another gradient after it had seen others: something is carried from "
    "step to step outside buffers and parameters (a hidden state, a memory, a running mean, a counter), so samples act on "
    "the gradients of steps that they were not drawn for, which no eps covers. Begin every step afresh; what follows a "
    "schedule may read self.global_step."
)


def check_module(
    module: LightningModule,
    *,
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    run_step: Step,
    transfer: Callable[[Any], Any],
    loss_reduction: LossReduction,
    units_of: Callable[[Any, UnitMap], UnitMap],
    row_memory: RowMemory,
    rows: UnitRows | None = None,
    checks: Callable[..., Checks] | None = None,
    thawed: Collection[str] = (),
) -> None:
    """Runs the three checks.

    Args:
        module: left untouched; a deep copy is trained on.
        dataset: where the samples come from.
        collate: makes batches of a few of them.
        run_step: runs ``training_step`` in the precision of the run.
        transfer: moves a batch to the device through the user's hooks.
        loss_reduction: as given to the strategy.
        units_of: the map of the rows of a batch, from the map of its samples.
        row_memory: learns, for the run to come, which kind of rows each layer sees.
        rows: which samples each unit owns; ``None`` where a unit is a sample.
        checks: makes the :class:`Checks` of a mechanism that has more to check; ``None`` for these.
        thawed: names of parameters that are frozen, and trained in the copy: they may be unfrozen during the run.

    Raises:
        PrivacyError: naming the module or the layer, and the fix.
    """
    twin = muted_copy(module)
    for name in thawed:
        twin.get_parameter(name).requires_grad_(True)
    # Loading and transforming samples draws random numbers too: the user's streams go on as if no check had run.
    with isolate_rng(include_cuda=module.device.type == "cuda"):
        # Spread over the data set: in one that is sorted by class, the first samples are too alike to show a coupling.
        n = len(dataset) if rows is None else rows.num_units
        chosen = sorted({i * (n - 1) // 4 for i in range(5)})
        owned = [(unit,) for unit in chosen] if rows is None else _some_rows(rows, chosen)
        units = [[dataset[i] for i in indices] for indices in owned]
        check = (checks or Checks)(twin, units, collate, run_step, transfer, units_of, row_memory, loss_reduction)
        check.state_is_not_written()
        check.learn_rows()
        check.engine_matches_plain_backward()
        check.units_are_independent()
        check.kinds_of_rows_are_known(dataset)
        check.mechanism_is_right()


class Checks(Probe):
    """The checks one by one, on a module that may be written to; made like a :class:`~lightning_dp.strategies.probe.Probe`."""

    @property
    def tolerance(self) -> float:
        """Relative error up to which two gradients are taken for the same."""
        trainer = getattr(self.module, "_trainer", None)
        low = trainer is not None and trainer.precision == "bf16-mixed"
        return LOW_PRECISION_TOLERANCE if low else TOLERANCE

    def state_is_not_written(self) -> None:
        """(b) Buffers and parameters after a step may depend on how often it ran, not on the samples that it saw."""
        before = self.state()
        self.loss([0, len(self.units) - 1])
        after = self.state()
        written = [name for name, value in after.items() if name in before and not torch.equal(value, before[name])]
        if not written:
            return
        self.restore(before)
        self.loss([len(self.units) // 2] * 2)
        other = self.state()
        private = [name for name in written if not torch.equal(other[name], after[name])]
        if private:
            raise PrivacyError(
                f"a training step writes private data into {', '.join(private)} (a buffer, or a parameter written in place), "
                "which a checkpoint would carry out without noise. Replace the layer (GroupNorm instead of running "
                "statistics; no codebooks or prototypes averaged from the batch), or keep such state outside the module "
                "and out of everything you release."
            )

    def learn_rows(self) -> None:
        """Batches of several sizes tell layers on samples from layers on what a batch shares, before anything is compared.

        The single unit comes first: whatever a layer's rows are, they are that unit's.
        """
        for size in sorted({1, 2, 3, len(self.units)}):
            units = list(range(len(self.units)))[:size]
            while not self._learns(units):
                pass

    def _learns(self, units: Sequence[int]) -> bool:
        """One pass; not the last if it showed that a module reads weights of the layers within, to be followed there."""
        before = dict(self.row_memory.borrowed)
        try:
            self.private_gradient(units, [1.0] * len(units))
        except PrivacyError:
            if self.row_memory.borrowed == before:
                raise
            return False
        return True

    def engine_matches_plain_backward(self) -> None:
        """(c) The sum of the engine's gradients over two units is what plain PyTorch computes for the batch."""
        units = [0, len(self.units) - 1]
        counts = [len(self.units[unit]) for unit in units]
        # A unit's own loss is the mean over its samples: weighted by their number, the units add up to the batch.
        weights = [count / max(counts) for count in counts]
        scale = (sum(counts) if self.loss_reduction == "mean" else 1) / max(counts)
        private, plain = self.private_gradient(units, weights), self.plain_gradient(units)
        error = _error(private, plain * scale)
        if error <= self.tolerance:
            return
        self.loss([len(self.units) // 2])
        if _error(plain, self.plain_gradient(units)) > self.tolerance:
            raise PrivacyError(CARRIED)
        raise PrivacyError(
            f"the engine's gradient differs from plain PyTorch's by {error:.1%} on the first samples. A layer computes "
            "something other than its class says, or draws random numbers in a way that cannot be repeated. Please "
            "report it with the network; self_check=False would train with wrong clipping."
        )

    def units_are_independent(self) -> None:
        """(a) A sample's gradient beside some other samples, beside others, and alone."""
        last = len(self.units) - 1
        units = sorted({0, last // 2, last})  # several: one may be silent (a padded sample, a saturated loss)
        others = {unit: [i for i in range(last + 1) if i != unit] for unit in units}
        if last >= 3:
            with without_dropout(self.module):  # in training mode: what couples samples may do so in it alone
                for unit in units:
                    self._compare_beside(unit, others[unit][:2], others[unit][-2:], COUPLED)
        modes = {child: child.training for child in self.module.modules()}
        if self.draws_masks():
            self.module.eval()  # dropout off: batches of different size draw different masks
        try:
            if last >= 1 and self.is_random():
                self._compare_sizes()
            elif last >= 1:
                # Every sample, beside all others: a loss that selects (hard examples, trimmed means) spares some of them.
                for unit in range(last + 1):
                    self._compare_beside(unit, [i for i in range(last + 1) if i != unit], [], NOT_ALONE)
        finally:
            for child, training in modes.items():
                child.training = training

    def _compare_beside(self, unit: int, some: Sequence[int], others: Sequence[int], message: str) -> None:
        """A unit's gradient is the same beside some units and beside others, or alone."""
        one, other = self._one_of(unit, some), self._one_of(unit, others)
        ratio = self._rows([unit, *some]) / self._rows([unit, *others])
        rescaled = min(_error(one, other * ratio), _error(one * ratio, other))
        if ratio != 1 and rescaled <= self.tolerance < _error(one, other):
            raise PrivacyError(self._wrong_reduction())
        error = _error(one, other)
        found = message.format(error=error) if error > self.tolerance else self._coupled_part(one, other)
        if found is not None:
            raise PrivacyError(self._explained(found, one, unit, some, others))

    def _explained(self, message: str, before: Tensor, unit: int, some: Sequence[int], others: Sequence[int]) -> str:
        """Why a unit's gradient is not the same beside some units (where it was ``before``) and beside others."""
        if _error(before, self._one_of(unit, some)) > self.tolerance:
            return CARRIED
        alone = self._one_of(unit, [])
        for beside in (some, others):
            at = [
                _error(
                    alone, self.private_gradient([unit, *beside], [float(i == place) for i in range(len(beside) + 1)])
                )
                for place in range(len(beside) + 1)
            ]
            if at[0] > self.tolerance >= min(at):
                return REORDERED
        return message + PADDED * self._is_padded(unit, some, others)

    def _is_padded(self, unit: int, some: Sequence[int], others: Sequence[int]) -> bool:
        """Whether the size of a batch's tensors depends on which samples it holds, and not on their number alone."""

        def sizes(beside: Sequence[int]) -> list[torch.Size]:
            samples = [sample for other in (unit, *beside) for sample in self.units[other]]
            tensors = [t for t in tensors_in(self.batch(samples)) if t.dim() > 0]
            if len(some) == len(others):
                return [t.shape for t in tensors]
            return [t.shape[1:] for t in tensors if t.shape[0] == len(samples)]

        return sizes(some) != sizes(others)

    def _coupled_part(self, one: Tensor, other: Tensor) -> str | None:
        """Parameter by parameter: samples that meet in a small part of the network move little of the whole gradient."""
        if self.tolerance > TOLERANCE:  # bfloat16: rounding alone may change a small part altogether
            return None
        whole = max(float(one.norm()), float(other.norm()))
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        sizes = [p.numel() for _, p in named]
        parts = zip(named, torch.split(one, sizes), torch.split(other, sizes), strict=True)
        for (name, _), first, second in parts:
            difference = float((first - second).norm())
            size = max(float(first.norm()), float(second.norm()))
            if difference > PART_TOLERANCE * size and difference > PART_FLOOR * whole:
                return (
                    f"the gradient of one sample for {name} changes by {difference / size:.0%} when the other samples of its "
                    "batch change, so clipping it bounds nothing. The layer, or what follows it, lets samples meet (an "
                    "axis mistaken for the batch's, attention over the batch). Correct it, or freeze what lies before it."
                )
        return None

    def _rows(self, units: Sequence[int]) -> int:
        return sum(len(self.units[unit]) for unit in units)

    def _compare_sizes(self) -> None:
        """Mean or sum, for a step that is always random: by the loss of one sample and of the same three times."""
        one = sum(abs(float(self.loss([0], seed).detach())) for seed in range(8))
        three = sum(abs(float(self.loss([0, 0, 0], seed).detach())) for seed in range(8))
        grows = three > 3**0.5 * one
        if one > 0 and grows == (self.loss_reduction == "mean"):
            raise PrivacyError(self._wrong_reduction())

    def _wrong_reduction(self) -> str:
        right = "sum" if self.loss_reduction == "mean" else "mean"
        return (
            f"training_step returns the {right} of the samples' losses, but loss_reduction={self.loss_reduction!r}: "
            "the number of samples drawn, which is private, would scale every gradient before it is clipped. Use "
            f"DPStrategy(loss_reduction={right!r})."
        )

    def _one_of(self, unit: int, others: Sequence[int]) -> Tensor:
        return self.private_gradient([unit, *others], [1.0] + [0.0] * len(others))

    def kinds_of_rows_are_known(self, dataset: Any) -> None:
        """Looks for single samples that tell apart the kinds of rows (nodes, edges) that no sample so far did."""
        for i in range(min(len(dataset), MOST_SAMPLES)):
            batch = self.batch([dataset[i]])
            units = self.units_of(batch, UnitMap(1))
            if not self.row_memory.undecided(units):
                return
            if self.row_memory.would_help(units):
                self.private_gradient_of(batch, units, [1.0])

    def mechanism_is_right(self) -> None:
        """What a mechanism adds to these checks; nothing for DP-SGD."""

    def _compare(self, one: Tensor, other: Tensor, message: str) -> None:
        error = _error(one, other)
        if error > self.tolerance:
            raise PrivacyError(message.format(error=error))


def _some_rows(rows: UnitRows, units: Sequence[int]) -> list[tuple[int, ...]]:
    """One or two rows of each unit: of every other one two, where units differ in the run.

    That makes batches of equal size in which a unit is beside others, so that dropout draws the same masks for it.
    """
    chosen = rows.choose(np.asarray(units, dtype=np.int64), 0)
    if rows.rows_per_unit:
        return [indices[:2] for indices in chosen]
    for parity in (1, 0):
        if len(chosen) == 5 and all(len(indices) > 1 for indices in chosen[parity::2]):
            return [indices[: 1 + (place % 2 == parity)] for place, indices in enumerate(chosen)]
    return [indices[:1] for indices in chosen]


def _error(one: Tensor, other: Tensor) -> float:
    finite = torch.isfinite(one) & torch.isfinite(other)
    one, other = one[finite], other[finite]
    size = max(float(one.norm()), float(other.norm()), 1e-12)
    return float((one - other).norm()) / size

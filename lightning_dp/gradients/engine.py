"""The private gradient: one ordinary backward pass, clipped per unit, noised once, written to ``.grad``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients.clipping import Clipping
from lightning_dp.gradients.contributions import Contribution, squared_norms
from lightning_dp.gradients.generic import generic_rule, mixed_call_rule
from lightning_dp.gradients.noise import NoiseSource
from lightning_dp.gradients.precision import full_precision
from lightning_dp.gradients.rules import LayerCall, find_rule
from lightning_dp.gradients.taps import Record, Taps
from lightning_dp.gradients.units import UnitMap

__all__ = ("GradientEngine", "LossReduction")

LossReduction = Literal["mean", "sum"]


class GradientEngine:
    """Turns a scalar loss of an unmodified network into a differentially private gradient.

    **Guarantee**: between two calls of :meth:`write_gradients`, let ``g_u`` be the gradient of unit u's own loss. The
    gradients written are ``(sum_u clip(g_u) + z) / expected_batch_size`` with ``z ~ N(0, (noise_multiplier * C)^2)`` per
    coordinate and ``||clip(g_u)|| <= C``: one step of the Gaussian mechanism with sensitivity C under adding or
    removing one unit (Abadi et al. 2016, arXiv 1607.00133). It holds if the loss is a mean (or sum) of terms that each
    depend on one unit only, and if the denominator is public, which is why it is an argument and never the number of
    units at hand. The eps of a whole training run is the accountant's business; the way batches are drawn enters there.

    The units' gradients are not built where their norm can be had otherwise (book-keeping; Bu et al. 2023,
    arXiv 2210.00038). Gradients that reach a parameter other than through the taps are refused by name.

    Args:
        module: the network. It is only hooked; :meth:`close` (or leaving the ``with`` block) takes the hooks off.
        clipping: the bound; see :class:`Clipping`.
        noise_multiplier: noise standard deviation over C; 0 clips without privacy.
        expected_batch_size: the public denominator B.
        loss_reduction: whether the loss is the ``"mean"`` or the ``"sum"`` over the units of the (physical) batch.
        noise: the generator; a fresh, secret one by default.

    Raises:
        PrivacyConfigError: for values out of range, complex or half-precision parameters.

    Example:
        >>> import torch
        >>> from lightning_dp.gradients import Clipping, GradientEngine
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientEngine(model, Clipping(1.0), noise_multiplier=1.0, expected_batch_size=8) as engine:
        ...     for _ in range(2):  # a real loop draws each batch by Poisson sampling
        ...         x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        ...         loss = torch.nn.functional.cross_entropy(model(x), y)
        ...         engine.backward(loss, num_units=len(x))
        ...         engine.write_gradients()
        ...         optimizer.step()
    """

    def __init__(
        self,
        module: nn.Module,
        clipping: Clipping,
        *,
        noise_multiplier: float,
        expected_batch_size: float,
        loss_reduction: LossReduction = "mean",
        noise: NoiseSource | None = None,
    ) -> None:
        if not 0 <= noise_multiplier < float("inf"):
            raise PrivacyConfigError(f"noise_multiplier={noise_multiplier!r} must be a finite number >= 0")
        if not 0 < expected_batch_size < float("inf"):
            raise PrivacyConfigError(f"expected_batch_size={expected_batch_size!r} must be positive")
        if loss_reduction not in ("mean", "sum"):
            raise PrivacyConfigError(f"loss_reduction={loss_reduction!r} must be 'mean' or 'sum'")
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
                raise PrivacyConfigError(
                    f"parameter {name} is {parameter.dtype}: per-unit norms, sums and noise are kept in float32 or "
                    "float64 parameters. Keep the parameters in float32 and use bf16-mixed precision for speed; "
                    "complex parameters are not supported yet."
                )
        self.module, self.clipping = module, clipping
        self.noise_multiplier, self.expected_batch_size = float(noise_multiplier), float(expected_batch_size)
        self.loss_reduction = loss_reduction
        self.noise = NoiseSource() if noise is None else noise
        self.dropped_units = 0
        """Units left out because their gradient was not finite. A private number: do not publish it."""
        self._taps = Taps(module)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._bound = 0.0
        self._folds: dict[tuple[str, int], int] = {}

    def __enter__(self) -> GradientEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off the network and forgets what was accumulated."""
        self._taps.remove()
        self._sums.clear()

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that take part, in the network's order, each once."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def backward(self, loss: Tensor, num_units: int | UnitMap, weights: Tensor | None = None) -> None:
        """Runs ``loss.backward()`` and adds the clipped sum over the batch's units; see :meth:`recording`."""
        with self.recording(num_units, weights):
            loss.backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def recording(self, num_units: int | UnitMap, weights: Tensor | None = None) -> Iterator[None]:
        """Privatises the one backward pass that runs inside the block. Several blocks add up: physical batches.

        The rows of a unit are found by position: axis 0 of every layer must be the batch axis. A layer that sees another
        number of rows per unit than before is refused, so misplaced axes surface as soon as the batch size varies, as it
        does under Poisson sampling; in a loop with a constant batch size they may not. With a ragged map of rows the loss
        must be the mean over units of each unit's own mean: a mean over rows would scale a unit by the others' rows.

        Args:
            num_units: units in this physical batch, or their map to rows.
            weights: ``(U,)`` in [0, 1]; a unit of weight zero adds exactly nothing (a stand-in for an empty draw).

        Raises:
            PrivacyError: if a gradient reached a parameter round the taps, nothing reached the taps at all, or a layer's
                rows cannot be assigned to units.
        """
        units = num_units if isinstance(num_units, UnitMap) else UnitMap(num_units)
        _check_weights(weights, units)
        self._taps.records.clear()
        self._taps.recording = True
        try:
            yield
            self._taps.recording = False
            self._refuse_leaks()
            if not self._taps.records:
                raise PrivacyError(
                    "the backward pass reached no trainable layer, so the loss does not depend on the network's "
                    "parameters. Return the loss of the batch from training_step, computed with gradients enabled."
                )
            with torch.no_grad(), torch.autocast(self._device().type, enabled=False), full_precision():
                self._add(self._taps.records, units, weights)
        finally:
            self._taps.recording = False
            self._taps.clear()

    def clipped_sum(self) -> list[Tensor]:
        """The sum of clipped gradients so far, one tensor for each of :meth:`trainable`. *Not* private."""
        return [self._sums[p] if p in self._sums else torch.zeros_like(p) for p in self.trainable()]

    def write_gradients(
        self, reduce: Callable[[Tensor], Tensor] | None = None, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Adds the noise, divides by the expected batch size, writes ``.grad`` and starts the next logical step.

        Args:
            reduce: sums a flat tensor over all ranks.
            shard: ``(rank, world_size)``. Each rank draws the noise of its own slice of the flat gradient before the
                reduction, so that every coordinate of the sum carries one draw of exactly sigma * C: the noise is
                neither missing, nor repeated, nor averaged away, and no rank knows more than its own slice.
        """
        parameters = self.trainable()
        for group in _same_kind(parameters):
            flat = torch.cat(
                [self._sums[p].flatten() if p in self._sums else torch.zeros_like(p).flatten() for p in group]
            )
            rank, world_size = shard
            start, stop = flat.numel() * rank // world_size, flat.numel() * (rank + 1) // world_size
            # A bound lowered since (a schedule) does not bound what was summed before.
            sensitivity = max(self._bound, self.clipping.sensitivity)
            self.noise.add_(flat[start:stop], self.noise_multiplier * sensitivity)
            if reduce is not None:
                flat = reduce(flat)
            flat.div_(self.expected_batch_size)
            offset = 0
            for parameter in group:
                parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
                offset += parameter.numel()
        self.discard()

    def discard(self) -> None:
        """Forgets the sums accumulated since the last step, unreleased."""
        self._sums.clear()
        self._bound = 0.0
        self._taps.generation += 1

    def _device(self) -> torch.device:
        return next(iter(self.module.parameters())).device

    def _add(self, records: Sequence[Record], units: UnitMap, weights: Tensor | None) -> None:
        self._bound = max(self._bound, self.clipping.sensitivity)
        uses: dict[nn.Parameter, list[Contribution]] = {}
        calls: Counter[str] = Counter()
        for record in records:
            self._check_fold(record, calls[record.name], units)
            calls[record.name] += 1
            for name, contribution in self._contributions(record, units).items():
                uses.setdefault(record.trainable[name], []).append(contribution)
        group = self._groups()
        num_groups = 1 + max(group.values())
        squares = torch.zeros(num_groups, units.num_units, device=self._device(), dtype=self._accumulation_dtype())
        kept: dict[nn.Parameter, Sequence[Contribution]] = {}
        for parameter, contributions in uses.items():
            norms, kept[parameter] = squared_norms(contributions)
            squares[group[parameter]] += norms
        # A mean over U units scales each unit's gradient by 1/U. U is private: undo it before the bound is applied.
        scale = float(units.num_units) if self.loss_reduction == "mean" else 1.0
        coefficients, finite = self.clipping.coefficients(squares * scale**2)
        coefficients = coefficients * scale
        if weights is not None:
            coefficients = coefficients * weights.to(coefficients)
        everything_finite = bool(finite.all())
        if not everything_finite:
            self.dropped_units += int((~finite).sum())
        for parameter, summands in kept.items():
            factor = coefficients[group[parameter]]
            for contribution in summands:
                usable = contribution if everything_finite else contribution.keep(finite)
                total = usable.weighted_sum(factor).to(parameter.dtype)
                self._sums[parameter] = self._sums[parameter].add_(total) if parameter in self._sums else total

    def _contributions(self, record: Record, units: UnitMap) -> Mapping[str, Contribution]:
        dtype = self._accumulation_dtype()
        present = [g for g in record.grads if g is not None]
        parameters = {name: p.detach() for name, p in record.trainable.items()}
        if record.mixed is not None:
            return mixed_call_rule(record.mixed, parameters, record.outputs[0], present[0], units, record.name)
        rule = find_rule(record.module)
        if rule is None:
            with self._taps.paused(), torch.enable_grad():
                return generic_rule(
                    record.module, parameters, record.inputs, record.outputs, record.grads, units, record.name
                )
        args, kwargs = record.inputs
        call = LayerCall(record.module, record.name, args, kwargs, record.grads, units, frozenset(parameters), dtype)
        return rule(call)

    def _check_fold(self, record: Record, call: int, units: UnitMap) -> None:
        """A layer whose rows per unit change from batch to batch does not have the batch on axis 0."""
        grad = next(g for g in record.grads if g is not None)
        if grad.dim() == 0 or units.rows is not None:
            return
        fold = units.fold(grad.shape[0], record.name)
        before = self._folds.setdefault((record.name, call), fold)
        if before != fold:
            raise PrivacyError(
                f"{record.name} saw {fold} rows for each privacy unit, and {before} before: its axis 0 is not the batch axis "
                "(an embedding of torch.arange, a sequence-first layout), so rows cannot be assigned to units. Use "
                "batch-first layouts and expand shared tensors to one row per sample."
            )

    def _refuse_leaks(self) -> None:
        untapped = self._taps.untapped()
        if untapped:
            raise PrivacyError(
                f"{', '.join(untapped)} joined the network after the engine was attached, so nothing clips their "
                "gradients. Build all layers first (unfreeze them later if need be), or attach a new engine."
            )
        leaked = sorted(self._taps.leaked)
        if leaked:
            for parameter in self.module.parameters():
                parameter.grad = None
            raise PrivacyError(
                f"autograd sent a gradient to {', '.join(leaked)} that did not pass through the layer that owns it, so "
                "it is neither clipped nor noised. Usual causes: a weight used by a function outside its module "
                "(F.linear(x, other.weight)), a regulariser inside the loss (use the optimizer's weight_decay), or "
                "recurrent layers, which read their weights themselves, or activation checkpointing with use_reentrant=True "
                "(use_reentrant=False works)."
            )

    def _groups(self) -> dict[nn.Parameter, int]:
        """The clipping group of each trainable parameter: its layer's number, or 0 where all are clipped together."""
        if not self.clipping.by_layer:
            return dict.fromkeys(self.trainable(), 0)
        group: dict[nn.Parameter, int] = {}
        number = 0
        for module in self.module.modules():
            own = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in group]
            group.update(dict.fromkeys(own, number))
            number += bool(own)
        return group

    def _accumulation_dtype(self) -> torch.dtype:
        wide = any(p.dtype == torch.float64 for p in self.module.parameters())
        return torch.float64 if wide else torch.float32


def _check_weights(weights: Tensor | None, units: UnitMap) -> None:
    if weights is None:
        return
    if weights.shape != (units.num_units,) or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise PrivacyConfigError(
            f"weights must hold one number in [0, 1] for each of the {units.num_units} units: a larger weight would "
            "carry a unit past its bound"
        )


def _same_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters grouped by device and dtype, in order: one flat buffer, one noise call, one reduction for each."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return list(groups.values())

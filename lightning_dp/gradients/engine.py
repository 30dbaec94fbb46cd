"""The private gradient: one ordinary backward pass, clipped per unit, noised once, written to ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients.adaptive import AdaptiveThreshold
from lightning_dp.gradients.ascent import Ascent, Gradients, TwoPasses
from lightning_dp.gradients.backward import BackwardPass
from lightning_dp.gradients.bias import BiasProbe
from lightning_dp.gradients.borrowed import readers
from lightning_dp.gradients.clipping import Clipping
from lightning_dp.gradients.contributions import add_weighted_sums
from lightning_dp.gradients.flat import group_sums, same_kind, views, zeros
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.noise import NoiseSource
from lightning_dp.gradients.precision import arithmetic
from lightning_dp.gradients.reals import like_parameter, real_dtype
from lightning_dp.gradients.row_memory import RowMemory
from lightning_dp.gradients.taps import Taps
from lightning_dp.gradients.units import UnitMap, check_expected, check_weights

__all__ = ("GradientEngine", "LossReduction")

LossReduction = Literal["mean", "sum"]
Arithmetic = Callable[[], AbstractContextManager[None]]


class GradientEngine:
    """Turns a scalar loss of an unmodified network into a differentially private gradient.

    **Guarantee**: between two calls of :meth:`write_gradients`, let ``g_u`` be the gradient of unit u's own loss. The
    gradients written are ``(sum_u clip(g_u) + z) / expected_batch_size`` with ``z ~ N(0, (noise_multiplier * C)^2)`` per
    real coordinate (a complex parameter has two for each element) and ``||clip(g_u)|| <= C``: one step of the Gaussian
    mechanism with sensitivity C under adding or removing one unit (Abadi et al. 2016, arXiv 1607.00133). It holds if the
    loss is a mean (or sum) of terms that each depend on one unit only, and if the denominator is public, hence an
    argument. The eps of a whole training run is the accountant's business; the way batches are drawn enters there.

    The units' gradients are not built where their norm can be had otherwise (book-keeping; Bu et al. 2023,
    arXiv 2210.00038). Gradients that reach a parameter other than through the taps are refused by name.

    Args:
        module: the network. It is only hooked; :meth:`close` (or leaving the ``with`` block) takes the hooks off.
        clipping: the bound; see :class:`Clipping`. Or an :class:`AdaptiveThreshold`, which moves with every release; the
            gradients then get more noise than ``noise_multiplier``, so that both releases together are what it says.
        noise_multiplier: noise standard deviation over C; 0 clips without privacy.
        expected_batch_size: the public denominator B.
        loss_reduction: whether the loss is the ``"mean"`` or the ``"sum"`` over the units of the (physical) batch.
        noise: the generator; a fresh, secret one by default.
        row_memory: what is known of the layers' rows from another engine on the same network (a self-check).
        memory_limit: bytes that the engine may take beyond the records of the pass, for gradients that it holds from the
            norm to the sum and for temporaries; ``None``: a share of what a plain step keeps. A small limit makes steps
            slower, never different, and never fails: one unit's gradient of one layer is always built.
        parameters: those to privatise; the others are left to autograd, and whoever steps them answers for what their
            gradient depends on. ``None``: all.

    Raises:
        PrivacyConfigError: for values out of range, or half-precision parameters.

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
        clipping: Clipping | AdaptiveThreshold,
        *,
        noise_multiplier: float,
        expected_batch_size: float,
        loss_reduction: LossReduction = "mean",
        noise: NoiseSource | None = None,
        memory_limit: int | None = None,
        parameters: Collection[nn.Parameter] | None = None,
        row_memory: RowMemory | None = None,
    ) -> None:
        if not 0 <= noise_multiplier < float("inf"):
            raise PrivacyConfigError(f"noise_multiplier={noise_multiplier!r} must be a finite number >= 0")
        if not 0 < expected_batch_size < float("inf"):
            raise PrivacyConfigError(f"expected_batch_size={expected_batch_size!r} must be positive")
        if loss_reduction not in ("mean", "sum"):
            raise PrivacyConfigError(f"loss_reduction={loss_reduction!r} must be 'mean' or 'sum'")
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and real_dtype(parameter.dtype) not in (torch.float32, torch.float64):
                raise PrivacyConfigError(
                    f"parameter {name} is {parameter.dtype}, too coarse for norms, sums and noise: keep parameters in "
                    "float32 (complex64), and use bf16-mixed for speed."
                )
        self.module = module
        self.threshold = clipping if isinstance(clipping, AdaptiveThreshold) else None
        self.clipping: Clipping = clipping.clipping if isinstance(clipping, AdaptiveThreshold) else clipping
        self.noise_multiplier, self.expected_batch_size = float(noise_multiplier), float(expected_batch_size)
        self.loss_reduction = loss_reduction
        self.noise = NoiseSource() if noise is None else noise
        self.probe: BiasProbe | None = None
        """Set to measure what clipping does to the sum. What it finds is not private."""
        self.dropped_units = 0
        """Units left out because their gradient was not finite. A private number: do not publish it."""
        self._memory = Memory(memory_limit)
        self._private = None if parameters is None else frozenset(parameters)
        self._selected = self._private
        self._taps = Taps(module, self._private)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._flat: list[tuple[list[nn.Parameter], Tensor]] = []
        self._bound = 0.0
        if row_memory is not None:
            self._taps.row_memory = row_memory
            self._taps.borrow(row_memory.borrowed)

    def __enter__(self) -> GradientEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off the network and forgets what was accumulated."""
        self._taps.remove()
        self._memory.end()
        self._forget_sums()

    @property
    def gradient_noise_multiplier(self) -> float:
        """Noise on the gradients over C: ``noise_multiplier``, or more where a threshold takes its share of the privacy."""
        if self.threshold is None:
            return self.noise_multiplier
        return self.threshold.config.gradient_noise_multiplier(self.noise_multiplier, self.expected_batch_size)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that take part, in the network's order, each once."""
        return [p for p in self._taps.parameters if p.requires_grad and (self._selected is None or p in self._selected)]

    def select(self, parameters: Collection[nn.Parameter]) -> None:
        """Turns to some of the private parameters: the next backward pass and release are about these alone."""
        chosen = frozenset(parameters)
        if self._private is not None and not chosen <= self._private:
            raise PrivacyConfigError("only parameters that the engine privatises can be selected")
        self._selected = chosen

    def backward(self, loss: Tensor, num_units: int | UnitMap, weights: Tensor | None = None) -> None:
        """Runs ``loss.backward()`` and adds the clipped sum over the batch's units; see :meth:`recording`."""
        with self.recording(num_units, weights):
            loss.backward()  # type: ignore[no-untyped-call]

    def expect(self, num_units: int | UnitMap) -> None:
        """Says, before the forward pass, which units it will be on. Optional; it holds until the next backward pass.

        Networks that compute something once for the whole batch (an embedding of ``torch.arange(length)``, relative
        positions) and broadcast it later need it: only who knows the number of units can tell such a layer from one on
        samples. Where both readings are possible (the length is a multiple of the number of units) the batches so far
        decide, so let the first pass be on a single unit, as the strategy does.
        """
        self._taps.expect(num_units if isinstance(num_units, UnitMap) else UnitMap(num_units))

    def follow_borrowed(self) -> None:
        """Follows what the row memory has learned from another engine since: weights that a module around their owner reads."""
        self._taps.borrow(self._taps.row_memory.borrowed)

    @contextmanager
    def recording(self, num_units: int | UnitMap, weights: Tensor | None = None) -> Iterator[None]:
        """Privatises the one backward pass that runs inside the block. Several blocks add up: physical batches.

        The rows of a unit are found by position: axis 0 of every layer must be the batch axis. A layer that sees another
        number of rows per unit than before is refused, so misplaced axes surface as soon as the batch size varies, as it
        does under Poisson sampling; in a loop with a constant batch size they may not. With a ragged map of rows the loss
        must be the mean over units of each unit's own mean; where it is a mean over rows, which would scale a unit by the
        others' rows, :attr:`UnitMap.terms` sets that right.

        Args:
            num_units: units in this physical batch, or their map to rows.
            weights: ``(U,)`` in [0, 1]; a unit of weight zero adds exactly nothing (a stand-in for an empty draw).

        Raises:
            PrivacyError: if a gradient reached a parameter round the taps, nothing reached the taps at all, or a layer's
                rows cannot be assigned to units.
        """
        units = num_units if isinstance(num_units, UnitMap) else UnitMap(num_units)
        with self._physical_batch(units, weights) as strict:
            with self._collecting(units, strict) as backward:
                yield
            backward.refuse_empty()
            with torch.no_grad(), strict():
                self._add(backward.finish(), units, weights)

    @contextmanager
    def mixing(self, num_units: int | UnitMap, ascent: Ascent, weights: Tensor | None = None) -> Iterator[TwoPasses]:
        """Privatises bias-aware gradients: one ordinary pass, and one at a point of each unit's own; see :class:`Ascent`.

        Inside the block, with a network that draws the same random numbers both times::

            with engine.mixing(units, ascent) as passes:
                with passes.first():
                    loss.backward()
                with passes.again():
                    loss = step()
                    with passes.second():
                        loss.backward()

        Several blocks add up, as those of :meth:`recording`, whose arguments these are. The gradients of the batch's units are
        held, for convolutions and small parameters one by one: bound U by physical batches.

        Raises:
            PrivacyError: as :meth:`recording`; and for layers that cannot be run with parameters of each unit's own.
        """
        units = num_units if isinstance(num_units, UnitMap) else UnitMap(num_units)
        with self._physical_batch(units, weights) as strict:
            passes = TwoPasses(
                self._taps, units, ascent, self._memory, strict, partial(self._collecting, units, strict)
            )
            yield passes
            with torch.no_grad(), strict():
                self._add(passes.mixed(), units, weights, passes.plain())

    @contextmanager
    def _physical_batch(self, units: UnitMap, weights: Tensor | None) -> Iterator[Arithmetic]:
        """Around everything that is done for one physical batch: what is held ends with it."""
        check_weights(weights, units)
        check_expected(self._taps.expected, units)
        self._memory.begin(self._taps.recorded_bytes())
        try:
            yield arithmetic(self._device().type)
        finally:
            self._memory.end()

    @contextmanager
    def _collecting(self, units: UnitMap, strict: Arithmetic) -> Iterator[BackwardPass]:
        """Around one backward pass: its records go to the pass that is returned, and nothing goes past it."""
        backward = BackwardPass(self._taps, units, self._accumulation_dtype(), self._memory, strict)
        self._taps.receive = backward.receive
        try:
            yield backward
            self._taps.receive = None
            self._refuse_leaks()
        except CheckpointError as error:
            raise PrivacyError(
                "activation checkpointing repeated a part of the network otherwise than it ran first, most likely because a "
                "checkpointed function uses a parameter of a module outside it. Checkpoint whole modules that own "
                "the parameters they use."
            ) from error
        finally:
            self._taps.receive = None
            self._taps.clear()

    def clipped_sum(self) -> list[Tensor]:
        """The sum of clipped gradients so far, one tensor for each of :meth:`trainable`. *Not* private."""
        sums = self._sums
        return [like_parameter(sums[p].clone(), p) if p in sums else torch.zeros_like(p) for p in self.trainable()]

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
        for group, flat in self._buffers():
            rank, world_size = shard
            start, stop = flat.numel() * rank // world_size, flat.numel() * (rank + 1) // world_size
            # A bound lowered since (a schedule) does not bound what was summed before.
            sensitivity = max(self._bound, self.clipping.sensitivity)
            self.noise.add_(flat[start:stop], self.gradient_noise_multiplier * sensitivity)
            total = flat if reduce is None else reduce(flat)
            total.div_(self.expected_batch_size)
            for parameter, gradient in zip(group, views(total, group), strict=True):
                parameter.grad = like_parameter(gradient, parameter)
        if self.threshold is not None:
            self.clipping = self.threshold.release(
                self.noise_multiplier, self.expected_batch_size, self.noise, reduce, shard[0], self._device()
            )
        self.discard()

    def discard(self) -> None:
        """Forgets the sums accumulated since the last step, unreleased."""
        self._forget_sums()
        self._bound = 0.0
        if self.threshold is not None:
            self.threshold.forget()
        if self.probe is not None:
            self.probe.forget()
        self._taps.uses.clear()
        self._taps.generation += 1

    def _forget_sums(self) -> None:
        # The buffers became the parameters' gradients, or hold what must not be released: the next step has its own.
        self._flat, self._sums = [], {}

    def _buffers(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """The running sums, one flat tensor for each kind of parameter; a parameter unfrozen since has none yet."""
        trainable = self.trainable()
        if not self._flat or len(self._sums) != len(trainable) or any(p not in self._sums for p in trainable):
            before, self._flat, self._sums = self._sums, [], {}
            for group in same_kind(trainable):
                flat = zeros(group)
                self._flat.append((group, flat))
                self._sums.update(zip(group, views(flat, group), strict=True))
            for parameter, total in before.items():
                if parameter in self._sums:
                    self._sums[parameter].copy_(total)
        return self._flat

    def _device(self) -> torch.device:
        return self._taps.parameters[0].device

    def _add(
        self, gradients: Gradients, units: UnitMap, weights: Tensor | None, plain: Gradients | None = None
    ) -> None:
        """Clips and adds: the one place where units' gradients, however they were come by, enter the sum."""
        self._bound = max(self._bound, self.clipping.sensitivity)
        norms, kept = gradients
        self._buffers()
        group, num_groups = self.clipping.groups(self.module, self.trainable())
        if not norms.keys() <= group.keys():
            raise PrivacyError(
                "the loss gives a gradient to parameters beside those that this backward pass is for. Freeze them "
                "(self.toggle_optimizer in a LightningModule) before the forward pass, and not after it."
            )
        squares = group_sums([(group[parameter], norm) for parameter, norm in norms.items()], num_groups)
        # A mean over U units scales each unit's gradient by 1/U. U is private: undo it before the bound is applied.
        scale = units.loss_scale(self.loss_reduction)
        scale = scale.to(squares) if isinstance(scale, Tensor) else scale
        if self.threshold is not None:
            self.threshold.observe((squares * scale**2).sum(0), weights)
        coefficients, finite = self.clipping.coefficients(squares * scale**2)
        coefficients = coefficients * scale
        if weights is not None:
            coefficients = coefficients * weights.to(coefficients)
        everything_finite = bool(finite.all())
        if not everything_finite:
            self.dropped_units += int((~finite).sum())
        weights_of = coefficients.unbind()
        add_weighted_sums(
            (
                contribution if everything_finite else contribution.keep(finite),
                weights_of[group[parameter]],
                self._sums[parameter],
            )
            for parameter, summands in kept.items()
            for contribution in summands
        )
        if self.probe is not None:
            self.probe.observe(*(plain or gradients), scale, weights, self._bound)

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
            memory = self._taps.row_memory
            memory.borrow(leaked, lambda name: len(readers(self.module, name)))
            self._taps.borrow(memory.borrowed)  # from the next pass on
            raise PrivacyError(
                f"autograd sent a gradient to {', '.join(leaked)} that did not pass through the layer that owns it, so "
                "it is neither clipped nor noised. Usual causes: a weight used by a function outside its module "
                "(F.linear(x, other.weight)), a layer run by layer.forward(x) instead of layer(x), a regulariser inside the "
                "loss (use the optimizer's weight_decay), or activation checkpointing with use_reentrant=True "
                "(use_reentrant=False works), or torch.compile (run the forward pass under "
                "torch.compiler.set_stance('force_eager')). Where the module around the layer reads the weight, it is "
                "followed from now on: run the pass again."
            )

    def _accumulation_dtype(self) -> torch.dtype:
        wide = any(real_dtype(p.dtype) == torch.float64 for p in self._taps.parameters)
        return torch.float64 if wide else torch.float32

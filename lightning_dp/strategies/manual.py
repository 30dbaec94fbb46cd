"""Manual optimisation with several optimizers: which of them is private, and what one draw of units may feed.

One draw may release one gradient for each of m private optimizers. All of them see the *same* random units, so their
joint release is one subsampled Gaussian mechanism, and not m independently subsampled ones: composing m events would
count too little. On a given draw, m Gaussian releases of noise multipliers z_1 ... z_m compose, also when each is chosen
after the others were seen, to one of multiplier ``(z_1^-2 + ... + z_m^-2)^(-1/2)``; amplification by sampling then applies
to that one. Here every optimizer's gradient gets ``sqrt(m)`` times the run's noise multiplier, so that a draw is exactly
one event of the run's noise multiplier, however the optimizers share it. A draw that some of them skip costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_dp.accounting import GaussianEvent
from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import GradientEngine, UnitMap
from lightning_dp.strategies.step import StepUnderWay

__all__ = ("ManualOptimization", "parameters_of", "reaches")


class ManualOptimization:
    """Follows the backward passes and optimizer steps that ``training_step`` makes by itself.

    **Guarantee**: the parameters of private optimizers only ever receive clipped and noised gradients: one release an
    optimizer and draw, from one backward pass. Those of the other optimizers are updated without noise, which is
    post-processing as long as their loss depends on private data through private parameters alone; that is declared by
    the user and checked on the first samples, and a backward pass that reaches them gives private parameters nothing.

    Args:
        optimizers: all of them.
        post_processing: the parameters declared to be trained by post-processing.
    """

    def __init__(self, optimizers: Sequence[Optimizer], post_processing: Collection[nn.Parameter]) -> None:
        declared = frozenset(post_processing)
        self.public = tuple(o for o in optimizers if parameters_of(o) & declared)
        self.private = tuple(o for o in optimizers if o not in self.public)
        self.public_parameters = frozenset(p for o in self.public for p in parameters_of(o))
        self.private_parameters = frozenset(p for o in self.private for p in parameters_of(o))
        self._pending: Optimizer | None = None
        self._released: list[Optimizer] = []
        self._stepping: Optimizer | None = None
        self._passing = False
        self._event: GaussianEvent | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def noise_factor(self) -> float:
        """Noise multiplier of one optimizer's gradient over that of the draw; see the module's docstring."""
        return math.sqrt(len(self.private))

    def attach(self) -> None:
        """Guards against what goes round the strategy: steps of private optimizers, gradients of public parameters."""

        def guard(optimizer: Optimizer, *_: Any) -> None:
            if self._stepping is not optimizer:
                raise PrivacyError(
                    "a private optimizer was stepped round the strategy, which releases and charges its gradient. Call step() "
                    "on what self.optimizers() returns (not on use_pl_optimizer=False)."
                )

        def passing(_: Tensor) -> None:
            if not self._passing:
                raise PrivacyError(
                    "a backward pass went round self.manual_backward and reached parameters declared as post-processing: "
                    "nobody looked at whether it was private. Call self.manual_backward(loss) instead of loss.backward()."
                )

        self._handles = [o.register_step_pre_hook(guard) for o in self.private]
        for parameter in self.public_parameters:
            self._handles.append(parameter.register_post_accumulate_grad_hook(passing))  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Takes the guards off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self) -> None:
        """A new draw of units."""
        self._pending, self._event = None, None
        self._released = []

    def backward(
        self, loss: Tensor, step: StepUnderWay, units: UnitMap, engine: GradientEngine, run: Callable[[], Tensor]
    ) -> Tensor:
        """Runs one backward pass: plain where it reaches a parameter trained by post-processing, private otherwise."""
        if reaches(loss, self.public_parameters):
            self._passing = True
            try:
                return run()
            finally:
                self._passing = False
        if self._pending is not None:
            raise PrivacyError(
                "two backward passes for one private step: each would be clipped by itself, and together they exceed the "
                "bound. Add the losses and call self.manual_backward once, then step."
            )
        owners = [o for o in self.private if any(p.requires_grad for p in parameters_of(o))]
        if len(owners) != 1:
            raise PrivacyError(
                f"a backward pass for {len(owners)} private optimizers at once: whose gradient it is, and what its norm "
                "counts, would be undecided. Wrap each optimizer's forward pass, backward pass and step in "
                "self.toggle_optimizer(...) and self.untoggle_optimizer(...)."
            )
        (owner,) = owners
        if owner in self._released:
            raise PrivacyError(_once())
        engine.select(parameters_of(owner))
        weights = step.enter_backward()
        with engine.recording(units, weights):
            loss = run()  # a gradient that reached public parameters by a hidden way would raise on arrival
        self._pending = owner
        return loss

    def step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        take: Callable[[Callable[[], Any]], Any],
        *,
        charge: Callable[[], GaussianEvent],
        step: StepUnderWay,
        engine: GradientEngine,
        reduce: Callable[[Tensor], Tensor],
        shard: tuple[int, int],
    ) -> Any:
        """One optimizer step: a private gradient is charged, released and used; a public one averaged over ranks.

        Args:
            optimizer: whose step.
            closure: the user's, or one that does nothing.
            take: steps the optimizer with the closure that it is given.
            charge: enters the draw in the ledger; called once a draw.
            step: the draw under way.
            engine: holds the clipped sum.
            reduce: sums over ranks.
            shard: rank and number of ranks.
        """
        if optimizer in self.public:

            def public_closure() -> Any:
                output = closure()
                if shard[1] > 1:
                    _average(optimizer, reduce, shard[1])
                return output

            return take(public_closure)

        if optimizer in self._released:
            raise PrivacyError(_once())
        if self._event is None:
            self._event = charge()  # before any gradient of this draw exists: a crash can only over-count
        event = self._event

        def private_closure() -> Any:
            output = closure()
            if self._pending is not optimizer:
                raise PrivacyError(
                    "an optimizer was stepped without a private gradient of its own. Between two steps call "
                    "self.manual_backward(loss) once, with a loss that reaches this optimizer's parameters and none that are "
                    "declared as post-processing (detach the generator's output: fake.detach())."
                )
            engine.select(parameters_of(optimizer))
            if not engine.trainable():
                raise PrivacyError(
                    "the optimizer's parameters are frozen at its step, so its gradient would be lost: step before "
                    "self.untoggle_optimizer(...), and before another optimizer is toggled."
                )
            engine.noise_multiplier = event.noise_multiplier * self.noise_factor  # what is charged is what is added
            engine.write_gradients(reduce, shard)
            self._pending = None
            self._released.append(optimizer)
            step.allow_another_backward()
            return output

        self._stepping = optimizer
        try:
            return take(private_closure)
        finally:
            self._stepping = None


def _average(optimizer: Optimizer, reduce: Callable[[Tensor], Tensor], world_size: int) -> None:
    """The mean of a public gradient over ranks, which must keep equal parameters; in an order that all ranks share."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad.contiguous()) / world_size


def parameters_of(optimizer: Any) -> frozenset[nn.Parameter]:
    """All parameters of an optimizer, as a set: in no order that two processes would agree on."""
    return frozenset(p for group in optimizer.param_groups for p in group["params"])


def reaches(loss: Tensor, parameters: Collection[Tensor]) -> bool:
    """Whether a backward pass of ``loss`` gives a gradient to any of ``parameters``."""
    wanted, stack, seen = {id(p) for p in parameters}, [loss.grad_fn], set()
    while wanted and stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor) and id(variable) in wanted:
            return True
        stack.extend(following for following, _ in node.next_functions)
    return False


def _once() -> str:
    return (
        "a second private step of one optimizer on one batch: the draw was charged for one release an optimizer. Step once "
        "on every batch; for more discriminator steps than generator steps, step the generator on every k-th batch."
    )

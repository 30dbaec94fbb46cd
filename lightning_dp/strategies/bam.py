"""Bias-aware minimisation, and its cheap relative, as one argument of the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import Schedule, Target
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import (
    AdaptiveClipping,
    Ascent,
    BiasProbe,
    ClippingName,
    LossReduction,
    Randomness,
    UnitMap,
)
from lightning_dp.gradients.taps import uncompiled
from lightning_dp.sampling import PrivacyUnit, UnitIds
from lightning_dp.strategies.argument_names import named_arguments
from lightning_dp.strategies.ascentcheck import AscentChecks, refuse_changed, versions
from lightning_dp.strategies.base import PrivateTrainingStrategy
from lightning_dp.strategies.budget import Budget
from lightning_dp.strategies.dp import clipping_of
from lightning_dp.strategies.previous import PreviousAscent
from lightning_dp.strategies.processes import Processes, ProcessStrategy, StartMethod
from lightning_dp.strategies.refusals import Subject
from lightning_dp.strategies.selfcheck import Checks

__all__ = ("BAMStrategy",)

Direction = Literal["unit", "previous"]


class BAMStrategy(PrivateTrainingStrategy):
    """Trains by DP-SGD on gradients whose clipped part is small: bias-aware minimisation.

    Clipping biases the gradient by what it cuts away, at most ``sum_u max(0, ||g_u|| - C) / B``. With
    ``direction="unit"`` (Knolle et al. 2023, arXiv 2308.12018) each unit's gradient ``g`` is mixed with the gradient ``g'`` at
    ``theta + radius * g / ||g||``, a point of the unit's own: ``(1 - alpha) g + alpha g'``, which to first order is the
    gradient of ``l_u + alpha * radius * ||grad l_u||``, so that training lowers the units' gradient norms too. The mixture is
    clipped, summed and noised as DP-SGD does. With ``direction="previous"`` (DP-SAT; Park et al. 2023) all units take their
    gradient at one point, a step of ``radius`` along the last *private* gradient.

    **Guarantee**: that of :class:`DPStrategy` with the same settings, at the same eps.

    - ``"unit"``: what is clipped is a function of the public parameters, public constants and one unit's data, and it is
      clipped after mixing. So adding or removing one unit moves the sum by at most C, and the step is the same
      subsampled Gaussian mechanism. Nothing else of the second pass is released.
    - ``"previous"``: the point is computed from parameters and a gradient that were both released by earlier steps, hence
      public to this one (post-processing). A DP-SGD step is private at *any* point that is fixed before its batch is drawn:
      the sum of gradients clipped to C, taken there, has sensitivity C. Adaptive composition then covers the run, as it does
      that of DP-SGD, whose parameters depend on earlier releases as well. The first step has no previous gradient and is
      an ordinary one.

    ``radius=0`` or ``alpha=0`` is DP-SGD, bit for bit. With ``"unit"``, ``training_step`` runs twice on every batch, with the
    same random numbers and with its logging switched off the second time; a step costs about two to three times one of DP-SGD.
    The units' gradients of a physical batch are held, so bound memory by ``physical_batch_size``.

    Args:
        eps: as in :class:`DPStrategy`, like everything that is not explained here.
        delta: as in :class:`DPStrategy`.
        radius: how far the parameters are moved, in L2 norm over all of them.
        alpha: share of the second gradient in [0, 1]; ``None`` means 0.8. For ``direction="unit"`` only.
        direction: ``"unit"`` or ``"previous"``.
        log_bias_not_private: **for study only**: logs, in every step, the distance over B between the clipped sum and the sum
            of the plain gradients, the bound on it, and the cosine between the two. They are computed from private data
            without noise, and no eps covers them.
        noise_multiplier: as in :class:`DPStrategy`.
        risk: as in :class:`DPStrategy`.
        max_grad_norm: as in :class:`DPStrategy`.
        accountant: as in :class:`DPStrategy`.
        noise_multiplier_schedule: as in :class:`DPStrategy`.
        max_grad_norm_schedule: as in :class:`DPStrategy`.
        sampling: as in :class:`DPStrategy`.
        clipping: as in :class:`DPStrategy`.
        max_batch_size: as in :class:`DPStrategy`.
        physical_batch_size: as in :class:`DPStrategy`.
        unit: as in :class:`DPStrategy`. A unit of several samples is moved once, along the mean gradient of its samples.
        max_rows_per_unit: as in :class:`DPStrategy`.
        augmentation_multiplicity: as in :class:`DPStrategy`.
        loss_reduction: as in :class:`DPStrategy`.
        unit_map: as in :class:`DPStrategy`.
        memory_limit: as in :class:`DPStrategy`; what the second pass holds comes on top.
        self_check: compare with plain PyTorch, the mixed gradients included, before the first step.
        seed: **for tests only**, as in :class:`DPStrategy`.
        accelerator: as in Lightning's strategies; normally set by the Trainer.
        parallel_devices: as in Lightning's strategies; normally set by the Trainer.
        cluster_environment: as in Lightning's strategies; normally set by the Trainer.
        checkpoint_io: as in Lightning's strategies; normally set by the Trainer.
        precision_plugin: as in Lightning's strategies; normally set by the Trainer.
        process_group_backend: as in :class:`DPStrategy`.
        timeout: as in :class:`DPStrategy`.
        start_method: as in :class:`DPStrategy`.

    Raises:
        PrivacyConfigError: for settings that cannot give the guarantee; the message names the fix.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_dp import BAMStrategy
        >>> trainer = Trainer(strategy=BAMStrategy(eps=8), max_epochs=10, logger=False, accelerator="cpu", devices=1)
    """

    @named_arguments
    def __init__(
        self,
        eps: float | None = None,
        delta: float | None = None,
        *,
        radius: float = 0.05,
        alpha: float | None = None,
        direction: Direction = "unit",
        log_bias_not_private: bool = False,
        noise_multiplier: float | None = None,
        risk: Target | None = None,
        max_grad_norm: float | dict[str, float] = 1.0,
        accountant: AccountantName = "pld",
        noise_multiplier_schedule: Schedule | None = None,
        max_grad_norm_schedule: Schedule | None = None,
        sampling: Sampling = "poisson",
        clipping: ClippingName | Literal["adaptive"] | AdaptiveClipping = "flat",
        max_batch_size: int | None = None,
        physical_batch_size: int | None = None,
        unit: UnitIds | None = None,
        max_rows_per_unit: int | None = None,
        augmentation_multiplicity: int = 1,
        loss_reduction: LossReduction = "mean",
        unit_map: Callable[[Any], UnitMap] | None = None,
        memory_limit: int | None = None,
        self_check: bool = True,
        seed: int | None = None,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: StartMethod = "popen",
    ) -> None:
        if direction not in get_args(Direction):
            raise PrivacyConfigError(f"unknown direction {direction!r}; choose one of {get_args(Direction)}")
        if direction == "previous" and alpha is not None:
            raise PrivacyConfigError(
                f"alpha={alpha!r} mixes two gradients, and direction='previous' takes one, at the moved point. Leave alpha "
                "out, or use direction='unit'."
            )
        super().__init__(
            "dp_bam" if direction == "unit" else "dp_sat",
            Budget(eps, delta, noise_multiplier, accountant, noise_multiplier_schedule, risk),
            clipping_of(max_grad_norm, clipping),
            sampling=sampling,
            physical_batch_size=physical_batch_size,
            loss_reduction=loss_reduction,
            memory_limit=memory_limit,
            self_check=self_check,
            seed=seed,
            processes=Processes(
                accelerator,
                parallel_devices,
                cluster_environment,
                checkpoint_io,
                precision_plugin,
                process_group_backend,
                timeout,
                start_method,
            ),
            max_grad_norm_schedule=max_grad_norm_schedule,
            unit=PrivacyUnit(unit, max_rows_per_unit, augmentation_multiplicity),
            max_batch_size=max_batch_size,
            unit_map=unit_map,
        )
        ascent = Ascent(radius, 0.8 if alpha is None else alpha)
        self._ascent = ascent if direction == "unit" and not ascent.is_none else None
        self._previous = PreviousAscent(radius) if direction == "previous" and radius else None
        self._logs_bias = log_bias_not_private
        self._first: FirstPass | None = None
        self._repeats = False

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if self._previous is not None:
            self._previous.start(self._running_engine.trainable())
        if self._logs_bias:
            self._running_engine.probe = BiasProbe()
            rank_zero_warn(
                "log_bias_not_private=True logs numbers computed from private data without noise in every step; no eps covers "
                "them. Do not publish them, and leave it off in runs whose guarantee matters.",
                category=PrivacyWarning,
            )

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._repeats:
            with uncompiled():
                return ProcessStrategy.training_step(self, *args, **kwargs)
        if self._ascent is not None:
            self._first = FirstPass(args, kwargs, Randomness.capture(self.root_device), versions(args))
        return super().training_step(*args, **kwargs)

    @override
    def teardown(self) -> None:
        self._first = None
        super().teardown()

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if self._previous is None else {**state, "previous": self._previous.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self._previous is not None:
            self._previous.load_state_dict(state.get("previous", ()))

    @override
    def _subject(self) -> Subject:
        return replace(super()._subject(), ascends=True)

    @override
    def _checks(self) -> Callable[..., Checks]:
        return super()._checks() if self._ascent is None else partial(AscentChecks, ascent=self._ascent)

    @override
    def _privatise(self, run_backward: Callable[[Tensor], Tensor], loss: Tensor, weights: Tensor | None) -> Tensor:
        if self._ascent is None:
            return super()._privatise(run_backward, loss, weights)
        with self._running_engine.mixing(self._units, self._ascent, weights) as passes:
            with passes.first():
                output = run_backward(loss)
            with passes.again():
                again = self._repeat_step()
                with passes.second():
                    run_backward(again)
        return output

    @override
    def _at_point(self) -> AbstractContextManager[None]:
        return nullcontext() if self._previous is None else self._previous.applied()

    @override
    def _write_gradients(self) -> None:
        engine = self._running_engine
        if engine.probe is not None:
            clipped = dict(zip(engine.trainable(), engine.clipped_sum(), strict=True))
            bias = engine.probe.measure(clipped, engine.expected_batch_size, self.sum_over_ranks)
            for name, value in (("norm", bias.norm), ("bound", bias.bound), ("cosine", bias.cosine)):
                self._module.log(f"not_private/bias_{name}", value)
        super()._write_gradients()
        if self._previous is not None:
            self._previous.remember(engine.trainable())

    def _repeat_step(self) -> Tensor:
        """The loss of the same batch, with the same random numbers and without logging."""
        first, self._first = self._first, None
        assert first is not None
        refuse_changed(first.args, first.versions)
        self._repeats = True
        try:
            with first.randomness.replayed(), _compat.nothing_logged(self._trainer):
                output = _compat.call_strategy_hook(self._trainer, "training_step", *first.args, **first.kwargs)
        finally:
            self._repeats = False
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise PrivacyError("training_step returned a loss the first time it saw a batch, and none the second time.")
        return loss


@dataclass(frozen=True)
class FirstPass:
    """What the second pass needs of the first.

    Attributes:
        args, kwargs: what ``training_step`` was called with.
        randomness: the generators before it ran.
        versions: how often each tensor of the batch had been changed in place.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    randomness: Randomness
    versions: tuple[int, ...]

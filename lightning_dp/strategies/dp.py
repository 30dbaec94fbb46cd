"""DP-SGD as one argument of the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision

from lightning_dp.accounting import Schedule, Target
from lightning_dp.accounting.accountants import AccountantName
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import AdaptiveClipping, AdaptiveThreshold, Clipping, ClippingName, LossReduction, UnitMap
from lightning_dp.sampling import PrivacyUnit, UnitIds
from lightning_dp.strategies.argument_names import named_arguments
from lightning_dp.strategies.base import PrivateTrainingStrategy
from lightning_dp.strategies.budget import Budget
from lightning_dp.strategies.processes import Processes, StartMethod

__all__ = ("DPStrategy",)


class DPStrategy(PrivateTrainingStrategy):
    """Trains any LightningModule by DP-SGD, on one device or on several, without changing it.

    **Guarantee**: the sequence of parameters, and everything computed from it, is (eps, delta)-differentially private
    under adding or removing one unit of the training set (a sample, or all samples of one ``unit`` id), with eps as
    :meth:`privacy_spent` reports: each step is a Poisson-subsampled Gaussian mechanism (Abadi et al. 2016,
    arXiv 1607.00133) that is charged to an append-only ledger before its gradient exists. What the guarantee does not
    cover is listed by the :class:`~lightning_dp.callbacks.PrivacyAccountant` callback and in the documentation: above
    all, training losses that the module logs, held-out data, and the choice of hyper-parameters.

    The DataLoader's batch size is the *expected* number B of units in one step over **all** ranks together, so that the
    guarantee does not depend on the hardware; with n units in the training set the sampling rate is B/n. One Lightning
    batch is one step, also when it is split to fit memory, so schedulers, ``max_steps`` and progress bars keep their
    meaning.

    Args:
        eps: the privacy budget. The noise is calibrated to it for the planned number of steps, and the step that would
            exceed it is never taken. Give this, ``noise_multiplier`` or ``risk``.
        delta: the additive slack of (eps, delta)-differential privacy; ``None`` means 1/(10 n).
        noise_multiplier: noise standard deviation over ``max_grad_norm``; eps is then reported. 0 trains with clipping
            only: **not private**, eps = inf.
        risk: a limit on what an attack may reach in place of eps, as ``ReconstructionRisk(gamma=0.1, kappa=1e-3)`` or
            ``MembershipRisk(advantage=0.1)``. The noise is calibrated to it and the step that would exceed it is never
            taken; eps is then reported. Computed by loss distributions, whatever
            ``accountant`` says.
        max_grad_norm: clipping bound C on each unit's gradient norm. With ``clipping="per_layer"`` also a mapping from
            names of modules or parameters (patterns with ``*`` too) to bounds; C is then the root of the sum of squares.
        accountant: ``"pld"`` (tight), ``"rdp"`` or ``"prv"``.
        noise_multiplier_schedule: factors on ``noise_multiplier`` (given or calibrated) that depend on the step alone, such as
            :class:`~lightning_dp.accounting.LinearSchedule`; every step is charged with the noise that it has.
        max_grad_norm_schedule: the same for ``max_grad_norm``. The noise, which is a multiple of it, moves along.
        sampling: ``"poisson"``; ``"truncated_poisson"``, which cuts draws at ``max_batch_size``; ``"balls_in_bins"``, in
            which every pass sees each unit once, in a step drawn for it alone (amplified by ``accountant="pld"`` only); or
            ``"shuffle"`` for shuffled batches accounted without amplification (a much larger eps).
        clipping: ``"flat"``, ``"per_layer"``, ``"automatic"``, or ``"adaptive"`` for a bound that starts at ``max_grad_norm``
            and follows a quantile of the gradient norms; :class:`~lightning_dp.gradients.AdaptiveClipping` sets which.
        max_batch_size: the most units in a step over all ranks, for ``sampling="truncated_poisson"``: a hard bound on
            the cost of a step. The chance that a draw is cut is part of delta; too small a value is refused.
        physical_batch_size: the most samples that a device holds at once, copies included; ``None`` does not split. A unit
            is never split: one with more samples is held alone.
        unit: whose each sample is, where a person owns several: the name of an attribute of the training data set that
            holds one id for each sample (looked up through ``Subset`` and ``ConcatDataset``), a function that returns
            the ids of a data set, or the ids. The guarantee then covers everything of one id, and n, B and delta count
            ids. ``None``: every sample is a unit.
        max_rows_per_unit: the most samples of a unit in one step, chosen afresh each time; ``None`` takes all.
        augmentation_multiplicity: K: each drawn sample is asked for K times, so that random transforms differ, and the
            K gradients are averaged before clipping (De et al. 2022, arXiv 2204.13650). Costs K times the computation
            and no privacy.
        post_processing: with manual optimisation, names of the modules or parameters (patterns with ``*`` too) that are trained
            without noise, because their loss uses private data through the private parameters alone: a generator, say.
            **You declare it**; the self-check compares their gradients on different batches, and every report names them.
        loss_reduction: whether ``training_step`` returns the ``"mean"`` or the ``"sum"`` of the samples' losses. A unit's
            own loss is the mean over its samples in either case.
        unit_map: for batches whose layers see something else than one row a sample: from the batch that ``training_step``
            gets to the :class:`~lightning_dp.gradients.UnitMap` of its rows to its samples. Batches of torch-geometric need
            none.
        memory_limit: bytes that the engine may take beyond what it records, for gradients that it holds from the norm to the
            sum and for temporaries; ``None``: little more than a plain step. A limit changes speed, never results.
        self_check: compare the engine with plain PyTorch on a few samples before the first step.
        seed: **for tests only**: fixes noise and sampling. Whoever knows it can subtract the noise.
        accelerator: as in Lightning's strategies; normally set by the Trainer.
        parallel_devices: as in Lightning's strategies; normally set by the Trainer.
        cluster_environment: as in Lightning's strategies; normally set by the Trainer.
        checkpoint_io: as in Lightning's strategies; normally set by the Trainer.
        precision_plugin: as in Lightning's strategies; normally set by the Trainer.
        process_group_backend: ``None`` picks NCCL on CUDA and gloo elsewhere.
        timeout: how long ranks wait for each other.
        start_method: how several processes on one machine start; ``"fork"`` in notebooks.

    Raises:
        PrivacyConfigError: for settings that cannot give the guarantee; the message names the fix.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_dp import DPStrategy
        >>> trainer = Trainer(strategy=DPStrategy(eps=8), max_epochs=10, logger=False, accelerator="cpu", devices=1)
    """

    @named_arguments
    def __init__(
        self,
        eps: float | None = None,
        delta: float | None = None,
        *,
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
        post_processing: Sequence[str] = (),
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
        super().__init__(
            "dp_sgd",
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
            post_processing=post_processing,
            unit=PrivacyUnit(unit, max_rows_per_unit, augmentation_multiplicity),
            max_batch_size=max_batch_size,
            unit_map=unit_map,
        )


def clipping_of(
    max_grad_norm: float | Mapping[str, float], clipping: ClippingName | Literal["adaptive"] | AdaptiveClipping
) -> Clipping | AdaptiveThreshold:
    """The bound that a strategy's two arguments describe, fixed or adapting."""
    config = AdaptiveClipping() if clipping == "adaptive" else clipping
    if not isinstance(config, AdaptiveClipping):
        return Clipping.of(max_grad_norm, config)
    if isinstance(max_grad_norm, Mapping):
        raise PrivacyConfigError(
            "adaptive clipping moves one bound over all parameters, and max_grad_norm gives several. Use one number to start "
            "from, or clipping='per_layer' with the bounds as they are."
        )
    return AdaptiveThreshold(config, max_grad_norm)

"""What every private strategy does: sample, check, charge, privatise, report. Subclasses name the mechanism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import PrivacyLedger, PrivacySettings, PrivacySpent, Schedule
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import (
    AdaptiveThreshold,
    Clipping,
    GradientEngine,
    LossReduction,
    NoiseSource,
    RowMemory,
    UnitMap,
    rows_of_units,
    units_of_batch,
)
from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.taps import uncompiled
from lightning_dp.sampling import (
    LogicalSampler,
    PoissonSampler,
    PrivacyUnit,
    PrivateDataLoader,
    ShuffleSampler,
    TruncatedPoissonSampler,
    UnitRows,
    build_private_loader,
    key_from_seed,
    loader_batch_size,
    new_key,
    why_not_private,
)
from lightning_dp.strategies.bound import Bound
from lightning_dp.strategies.budget import Budget
from lightning_dp.strategies.manual import ManualOptimization
from lightning_dp.strategies.manualcheck import check_manual_module
from lightning_dp.strategies.messages import announcement, budget_is_spent, not_private, plan_exceeds_budget
from lightning_dp.strategies.processes import Processes, ProcessStrategy
from lightning_dp.strategies.refusals import Subject, refuse
from lightning_dp.strategies.selfcheck import Checks, check_module
from lightning_dp.strategies.step import StepUnderWay, step_arguments

__all__ = ("PrivateTrainingStrategy",)

CHECKPOINT_KEY = "lightning_dp"


class PrivateTrainingStrategy(ProcessStrategy):
    """Trains an unmodified LightningModule privately: the plumbing that mechanisms share.

    **Guarantee**: every training batch is drawn by the accounted sampler, every step is charged to the append-only ledger
    before its gradient exists, and only the engine's clipped and noised sum reaches ``.grad``, other ranks and the
    optimizer. What cannot keep this is refused before the first step.

    Args:
        mechanism: its name in reports.
        budget: eps or noise, and the ledger.
        clipping: the bound on each sample's gradient, and with it the noise's scale.
        sampling: ``"poisson"``, ``"truncated_poisson"`` or ``"shuffle"``.
        physical_batch_size: the most samples that a device holds at once; a unit with more is held alone.
        loss_reduction: whether ``training_step`` returns a mean or a sum.
        memory_limit: bytes that the engine may hold beyond its records; see
            :class:`~lightning_dp.gradients.GradientEngine`.
        self_check: compare with plain PyTorch before the first step.
        seed: for tests only.
        max_grad_norm_schedule: factors on the bound, step by step.
        post_processing: names of what is trained without noise under manual optimisation.
        processes: Lightning's own arguments.
        unit: what is protected as a whole, and how much of it a step uses.
        max_batch_size: the most units in a step, for truncated Poisson sampling.
        unit_map: from a batch to the map of its rows to its samples, or ``None`` to read it from the batch.
    """

    def __init__(
        self,
        mechanism: str,
        budget: Budget,
        clipping: Clipping | AdaptiveThreshold,
        *,
        sampling: Sampling,
        physical_batch_size: int | None,
        loss_reduction: LossReduction,
        memory_limit: int | None,
        self_check: bool,
        seed: int | None,
        processes: Processes,
        max_grad_norm_schedule: Schedule | None = None,
        post_processing: Sequence[str] = (),
        unit: PrivacyUnit | None = None,
        max_batch_size: int | None = None,
        unit_map: Callable[[Any], UnitMap] | None = None,
    ) -> None:
        super().__init__(processes)
        if sampling not in get_args(Sampling):
            raise PrivacyConfigError(f"unknown sampling {sampling!r}; choose one of {get_args(Sampling)}")
        if (sampling == "truncated_poisson") != (max_batch_size is not None):
            raise PrivacyConfigError(
                f"sampling={sampling!r} with max_batch_size={max_batch_size!r}: sampling='truncated_poisson' cuts draws at "
                "max_batch_size, so give both or neither. To fit a batch into memory without cutting it, use "
                "physical_batch_size."
            )
        whole = isinstance(physical_batch_size, int) and not isinstance(physical_batch_size, bool)
        if physical_batch_size is not None and not (whole and physical_batch_size >= 1):
            raise PrivacyConfigError(
                f"physical_batch_size={physical_batch_size!r} must be a whole number >= 1, or None"
            )
        if loss_reduction not in ("mean", "sum"):
            raise PrivacyConfigError(f"unknown loss_reduction {loss_reduction!r}; choose 'mean' or 'sum'")
        self._mechanism, self._budget = mechanism, budget
        self._bound = Bound(clipping, max_grad_norm_schedule, budget.schedule)
        self._sampling, self._physical_batch_size = sampling, physical_batch_size
        self._max_batch_size = max_batch_size
        self._loss_reduction: LossReduction = loss_reduction
        Memory(memory_limit)  # refuses a limit that is none before anything runs
        self._memory_limit = memory_limit
        self._self_check, self._seed = self_check, seed
        self._post_processing = (post_processing,) if isinstance(post_processing, str) else tuple(post_processing)
        self._manual: ManualOptimization | None = None
        self._unit_map, self._units = unit_map, UnitMap(1)
        self._unit = PrivacyUnit() if unit is None else unit
        self._budget.unit = self._unit.name
        self._rows: UnitRows | None = None
        self._key: bytes | None = None
        self._position = 0
        self._sampler: LogicalSampler | None = None
        self._loader: PrivateDataLoader | None = None
        self._engine: GradientEngine | None = None
        self._step = StepUnderWay()
        self._settled = False
        self._settled_at = 0

    # --- what a run reports -------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> PrivacyLedger:
        """Everything that was spent, append-only."""
        return self._budget.ledger

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over ``max_grad_norm``, calibrated if need be once the training data are known."""
        self._settle()
        return self._budget.noise_multiplier

    @property
    def clipping(self) -> Clipping:
        """The bound in force. One that adapts is itself private: it may be logged."""
        if self._sampler is None and self._bound.schedule is not None:  # which needs to know the plan
            return self._bound.first
        return self._bound.at(max(0, self._position - 1), self._budget.planned)

    @property
    def engine(self) -> GradientEngine | None:
        """The gradient engine while ``fit`` runs."""
        return self._engine

    def privacy_spent(self) -> PrivacySpent:
        """What was spent so far, an upper bound; by the chosen accountant."""
        return self._budget.spent()

    def epsilon(self, ahead: int = 0) -> float:
        """An upper bound on eps after ``ahead`` more batches (0: so far), cheap enough to be shown while training."""
        return self._budget.epsilon(self._position, ahead)

    def settings(self) -> PrivacySettings:
        """The public facts of the run. Raises PrivacyError before the training data are known."""
        self._settle()
        if self._sampler is None:
            raise PrivacyError("the training data are not known yet, so neither are the sampling rate and the noise")
        return PrivacySettings(
            mechanism=self._mechanism,
            delta=self._budget.delta,
            noise_multiplier=self._budget.noise_multiplier,
            max_grad_norm=self._bound.first.max_grad_norm,
            clipping=self._bound.name,
            sampling=self._sampling,
            sample_rate=self._sampler.sample_rate,
            expected_batch_size=self._sampler.expected_batch_size,
            dataset_size=self._sampler.dataset_size,
            accountant=self._budget.accountant,
            eps=self._budget.eps,
            gradient_noise_multiplier=self._gradient_noise_multiplier(),
            noise_multiplier_schedule=None if self._budget.schedule is None else str(self._budget.schedule),
            max_grad_norm_schedule=None if self._bound.schedule is None else str(self._bound.schedule),
            post_processing=", ".join(self._post_processing) or None,
            unit=self._unit.name,
            risk=None if self._budget.risk is None else str(self._budget.target),
        )

    # --- hooks, in the order in which Lightning calls them ------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        if self._trainer.state.fn == TrainerFn.FITTING:
            refuse("trainer", self._subject())
        super().setup_environment()
        self._budget.share_segment(self.broadcast(self._budget.ledger.segment))

    @override
    def setup(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self._settled, self._loader = False, None  # a new fit has a plan and a loader of its own
            refuse("module", self._subject())
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.synchronise_model()
        if fitting:
            self.setup_optimizers(trainer)
            refuse("optimizers", self._subject())
            self._manual = None if self._module.automatic_optimization else self._follow_optimizers()
            # Refuses parameters without a bound.
            self._bound.first.groups(self._module, None if self._manual is None else self._manual.private_parameters)
        self.setup_precision_plugin()
        if fitting:
            _compat.move_optimizers(self.optimizers, self.root_device)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        if not self._trainer.training:
            return dataloader
        if self._loader is not None and not self._trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            raise PrivacyConfigError(
                "several training loaders: which samples make a step, and at what rate, must be one fact. Join the data "
                "sets with torch.utils.data.ConcatDataset and return one DataLoader."
            )
        reason = why_not_private(dataloader)
        if reason is not None:
            raise PrivacyConfigError(reason)
        sampler = self._make_sampler(dataloader)
        self._settled = self._settled and self._sampler is not None and _same_rate(self._sampler, sampler)
        self._sampler = sampler
        self._loader = build_private_loader(
            dataloader,  # type: ignore[arg-type]
            sampler,
            rank=self.global_rank,
            world_size=self.world_size,
            physical_batch_size=self._physical_batch_size,
            position=lambda: self._position,
            rows=self._rows,
        )
        return self._loader

    @override
    def on_train_start(self) -> None:
        if self._settled_at != self._trainer.global_step:  # settled before the progress of a resumed run was restored
            self._settled = False
        self._settle()
        module, settings, row_memory = self._module, self.settings(), RowMemory()
        if self._self_check and self._manual is None:
            assert self._loader is not None
            check_module(
                module,
                dataset=self._loader.dataset,
                collate=self._loader.collate_fn,
                run_step=self._run_user_step,
                transfer=self._transfer,
                loss_reduction=self._loss_reduction,
                units_of=self._units_of,
                row_memory=row_memory,
                rows=self._rows,
                checks=self._checks(),
            )
        if self._self_check and self._manual is not None:
            assert self._loader is not None
            check_manual_module(
                module,
                public=self._subject().declared(),
                dataset=self._loader.dataset,
                collate=self._loader.collate_fn,
                run_step=self._run_user_step,
                transfer=self._transfer,
                loss_reduction=self._loss_reduction,
                units_of=self._units_of,
                rows=self._rows,
            )
        self._engine = GradientEngine(
            module,
            self._bound.threshold or self.clipping,
            noise_multiplier=settings.noise_multiplier,
            expected_batch_size=settings.expected_batch_size,
            loss_reduction=self._loss_reduction,
            noise=NoiseSource(self._seed, self.global_rank),
            memory_limit=self._memory_limit,
            parameters=None if self._manual is None else self._manual.private_parameters,
            row_memory=row_memory,
        )
        if self._manual is not None:
            self._manual.attach()
        self._announce(settings)
        if not self._budget.may_step(self._position):
            self._stop()

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        moved = super().batch_to_device(batch, device, dataloader_idx)
        if moved is None and self._trainer.training:
            # Lightning would skip the step, and every later batch would be paired with the draw before its own.
            raise PrivacyError(
                "collate_fn or a batch-transfer hook turned a training batch into None, which skips the step because "
                "of what its samples are. Always return a batch; give unusable samples a loss of zero instead."
            )
        return moved

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self._loader is not None
        # One draw for one batch, also where the module then skips it: a draw is never kept for another batch.
        self._step.begin(self._loader.take())
        self._position = self._step.number + 1
        if self._manual is not None:
            self._manual.begin()
            self._running_engine.discard()  # nothing of the draw before, forward passes included
        if not self._settled:  # the loader was reloaded and its data set or batch size is another one
            self._settle()
            assert self._engine is not None
            assert self._sampler is not None
            self._engine.expected_batch_size = float(self._sampler.expected_batch_size)
        if self._bound.schedule is not None:
            self._running_engine.clipping = self.clipping  # the noise follows: its scale is read from the same object

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._units = self._units_of(args[0], self._step.samples)  # refuses a step whose gradient was released before
        self._running_engine.expect(self._units)
        with uncompiled():
            output = super().training_step(*args, **kwargs)
        if self._manual is not None:
            return output
        if output is None or (isinstance(output, dict) and output.get("loss") is None):
            raise PrivacyError(
                "training_step returned no loss. Skipping a batch depends on private data, and dropping it would let "
                "one sample remove the others. Always return the loss; samples that are not finite are dropped one by one."
            )
        return output

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        if self._manual is not None:
            plain = partial(super().backward, closure_loss, optimizer, *args, **kwargs)
            return self._manual.backward(closure_loss, self._step, self._units, self._running_engine, plain)
        run = super().backward
        weights = self._step.enter_backward()
        return self._privatise(lambda loss: run(loss, optimizer, *args, **kwargs), closure_loss, weights)

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any | None = None, **kwargs: Any
    ) -> Any:
        if self._manual is not None:
            return self._manual_step(self._manual, optimizer, closure, model, **kwargs)
        event = self._budget.charge(self._step.number)  # before the gradient exists: a crash can only over-count
        self._running_engine.noise_multiplier = event.noise_multiplier  # what is charged is what is added

        def private_closure() -> Any:
            with self._at_point():
                loss = closure()
                self._run_further_batches(optimizer)
            self._step.end()
            self._write_gradients()
            return loss

        output = super().optimizer_step(optimizer, private_closure, model, **kwargs)
        at_planned_end = self._trainer.global_step + 1 >= self._trainer.estimated_stepping_batches
        if not at_planned_end and not self._budget.may_step(self._position):
            self._stop()
        return output

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        checkpoint[CHECKPOINT_KEY] = self.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        if self._trainer.state.fn == TrainerFn.FITTING:
            if CHECKPOINT_KEY in checkpoint:
                self.load_state_dict(checkpoint[CHECKPOINT_KEY])
            else:
                rank_zero_warn(
                    f"{checkpoint_path} holds no privacy ledger: what its weights were trained on before is not part of "
                    "the eps reported here.",
                    category=PrivacyWarning,
                )
        return checkpoint

    @override
    def on_exception(self, exception: BaseException) -> None:
        self._release()
        super().on_exception(exception)

    @override
    def teardown(self) -> None:
        self._release()
        super().teardown()

    # --- state --------------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """Ledger, settings and position, as plain python values.

        Neither the noise generator nor the sampling key is in it: whoever holds them subtracts the noise or knows who
        was sampled. A resumed run draws afresh, which is the same mechanism.
        """
        budget, bound = self._budget.state_dict(), self._bound.state_dict()
        return {"version": 1, "position": self._position, "budget": budget, **bound}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds the checkpoint's spending to the ledger; nothing that was spent is ever taken back."""
        self._budget.load_state_dict(state["budget"])
        # Never back: a draw of this process's key that was used once must not feed a second gradient.
        self._position = max(self._position, int(state["position"]))
        self._settled = False
        self._bound.load_state_dict(state)

    @override
    def workers_failed(self) -> None:
        """Closes the ledger: processes that died may have spent, and released, what this one cannot know."""
        self._budget.ledger_is_incomplete()

    # --- manual optimisation ------------------------------------------------------------------------------------------

    def _follow_optimizers(self) -> ManualOptimization:
        declared = set(self._subject().declared())
        return ManualOptimization(
            self.optimizers, [p for name, p in self._module.named_parameters() if name in declared]
        )

    def _manual_step(
        self, manual: ManualOptimization, optimizer: Optimizer, closure: Callable[[], Any], model: Any, **kwargs: Any
    ) -> Any:
        plain = super().optimizer_step
        output = manual.step(
            optimizer,
            closure,
            lambda private: plain(optimizer, private, model, **kwargs),
            charge=lambda: self._budget.charge(self._step.number),
            step=self._step,
            engine=self._running_engine,
            reduce=self.sum_over_ranks,
            shard=(self.global_rank, self.world_size),
        )
        if self._position < self._budget.planned and not self._budget.may_step(self._position):
            self._stop()
        return output

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _trainer(self) -> Trainer:
        return self._module.trainer

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def _running_engine(self) -> GradientEngine:
        if self._engine is None:
            raise PrivacyError("the private training step was called outside fit; nothing would privatise its gradient")
        return self._engine

    def _subject(self) -> Subject:
        calibrates = self._budget.target is not None
        return Subject(
            self._trainer,
            self._module,
            tuple(self.optimizers),
            calibrates,
            splits=self._physical_batch_size is not None,
            adapts=self._bound.threshold is not None,
            post_processing=self._post_processing,
        )

    def _gradient_noise_multiplier(self) -> float | None:
        if self._manual is not None and len(self._manual.private) > 1:
            return self._budget.noise_multiplier * self._manual.noise_factor
        assert self._sampler is not None
        return self._bound.gradient_noise_multiplier(self._budget.noise_multiplier, self._sampler.expected_batch_size)

    def _make_sampler(self, dataloader: Any) -> LogicalSampler:
        if self._key is None:
            # One key for all ranks, so that they agree on a draw without exchanging it; from the operating system.
            key = new_key() if self._seed is None else key_from_seed(self._seed)
            self._key = self.broadcast(key)
        self._rows = self._unit.rows_of(dataloader.dataset, self._key)
        if self._rows is not None and self.broadcast(self._rows.digest()) != self._rows.digest():
            raise PrivacyConfigError(
                "the processes disagree on which samples belong to which unit, so each would draw batches of its own. Make "
                "the training data set, its order and its ids the same everywhere: split it with a fixed seed, for example."
            )
        n = len(dataloader.dataset) if self._rows is None else self._rows.num_units
        batch_size = loader_batch_size(dataloader)
        if batch_size > n:
            what = "samples" if self._unit.ids is None else f"units ({self._unit.name}), and counts units"
            rank_zero_warn(
                f"batch size {batch_size} exceeds the {n} training {what}: every one takes part in every step.",
                category=PrivacyWarning,
            )
        if self._max_batch_size is not None:
            return TruncatedPoissonSampler(n, min(batch_size, n), self._key, self._max_batch_size)
        kind = PoissonSampler if self._sampling == "poisson" else ShuffleSampler
        return kind(n, min(batch_size, n), self._key)

    def _settle(self) -> None:
        if self._settled or self._lightning_module is None or not self._trainer.training:
            return
        if self._loader is None:
            self._trainer.fit_loop.setup_data()
        if self._sampler is None:
            return
        self._before_settling(self._sampler)
        self._budget.settle(self._sampler, self._planned_draws(), self._position)
        self._settled, self._settled_at = True, self._trainer.global_step

    def _before_settling(self, sampler: LogicalSampler) -> None:
        """What a mechanism fixes as soon as the data are known and before the budget is settled; here nothing."""

    def _planned_draws(self) -> float:
        """How many batches are still to come: steps of the optimizer where Lightning takes them, one a batch."""
        trainer = self._trainer
        if self._module.automatic_optimization:
            return max(0, trainer.estimated_stepping_batches - trainer.global_step)
        # Lightning counts every step of every optimizer; here a draw counts, whatever it feeds.
        draws = float("inf")
        if trainer.max_epochs not in (None, -1):
            done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            draws = max(0, trainer.num_training_batches * max(trainer.max_epochs, 1) - done)
        if trainer.max_steps != -1:
            draws = min(draws, -(-max(0, trainer.max_steps - trainer.global_step) // len(self.optimizers)))
        return draws

    # What a mechanism may do otherwise than DP-SGD.

    def _checks(self) -> Callable[..., Checks]:
        """The self-check's kind."""
        return Checks

    def _privatise(self, run_backward: Callable[[Tensor], Tensor], loss: Tensor, weights: Tensor | None) -> Tensor:
        """Adds the clipped gradients of the current physical batch, whose loss is there, to the engine's sum."""
        with self._running_engine.recording(self._units, weights):
            return run_backward(loss)

    def _at_point(self) -> AbstractContextManager[None]:
        """Around all passes of a step: the parameters at which its gradient is taken, themselves by default."""
        return nullcontext()

    def _write_gradients(self) -> None:
        """Turns the sum into the one private gradient."""
        self._running_engine.write_gradients(self.sum_over_ranks, (self.global_rank, self.world_size))

    def _run_further_batches(self, optimizer: Optimizer) -> None:
        """Runs the physical batches after the first."""
        for chunk, batch in enumerate(self._step.draw.rest, start=1):
            self._step.go_to(chunk)
            moved = self._transfer(batch)
            _compat.set_logged_batch(self._trainer, moved)
            arguments = step_arguments(self._module, moved, self._trainer.fit_loop.batch_idx)
            output = _compat.call_strategy_hook(self._trainer, "training_step", *arguments)
            self.backward(output["loss"] if isinstance(output, dict) else output, optimizer)

    def _transfer(self, batch: Any) -> Any:
        batch = self.precision_plugin.convert_input(batch)
        return _compat.transfer_batch(self._module, batch, self.root_device)

    def _units_of(self, batch: Any, samples: UnitMap) -> UnitMap:
        """The map of the rows of a batch, from whose its samples are."""
        if self._unit_map is None:
            return units_of_batch(batch, samples)
        return rows_of_units(self._unit_map(batch), samples)

    def _run_user_step(self, module: LightningModule, batch: Any) -> Any:
        with self.precision_plugin.train_step_context(), uncompiled():
            return module.training_step(*step_arguments(module, batch, 0))

    def _stop(self) -> None:
        """Ends training after the last step that the budget covers, also where min_epochs or min_steps ask for more."""
        trainer = self._trainer
        rank_zero_info(budget_is_spent(self.settings(), self._position))
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
        trainer.should_stop = True

    def _announce(self, settings: PrivacySettings) -> None:
        warnings = not_private(settings, self._seed)
        if self._budget.uncovered:
            warnings.append(plan_exceeds_budget(settings, self._budget.uncovered))
        for warning in warnings:
            rank_zero_warn(warning, category=PrivacyWarning)
        planned = self._trainer.estimated_stepping_batches if self._manual is None else self._budget.planned
        rank_zero_info(announcement(settings, self.world_size, planned))

    def _release(self) -> None:
        if self._manual is not None:
            self._manual.detach()
        if self._engine is not None:
            self._engine.close()
        self._engine, self._step = None, StepUnderWay()


def _same_rate(a: LogicalSampler, b: LogicalSampler) -> bool:
    return (a.dataset_size, a.expected_batch_size) == (b.dataset_size, b.expected_batch_size)

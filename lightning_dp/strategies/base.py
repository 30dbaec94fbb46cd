"""What every private strategy does: sample, check, charge, privatise, report. Subclasses name the mechanism."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import PrivacySettings
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import NoiseSource, RowMemory
from lightning_dp.gradients.taps import uncompiled
from lightning_dp.sampling import build_private_loader, why_not_private
from lightning_dp.strategies.checked import CheckedStrategy
from lightning_dp.strategies.freezing import trained
from lightning_dp.strategies.manual import ManualOptimization
from lightning_dp.strategies.messages import announcement, budget_is_spent, not_private, plan_exceeds_budget
from lightning_dp.strategies.planned import same_rate
from lightning_dp.strategies.refusals import refuse
from lightning_dp.strategies.step import StepUnderWay, step_arguments

__all__ = ("PrivateTrainingStrategy",)

CHECKPOINT_KEY = "lightning_dp"


class PrivateTrainingStrategy(CheckedStrategy):
    """Trains an unmodified LightningModule privately: the plumbing that mechanisms share.

    **Guarantee**: every training batch is drawn by the accounted sampler, every step is charged to the append-only ledger
    before its gradient exists, and only the engine's clipped and noised sum reaches ``.grad``, other ranks and the
    optimizer. What cannot keep this is refused before the first step.

    Its arguments are those of :class:`~lightning_dp.strategies.planned.PlannedStrategy`.
    """

    # --- hooks, in the order in which Lightning calls them ------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        if self._trainer.state.fn == TrainerFn.FITTING:
            refuse("trainer", self._subject())
            self._freezing.built(self._module)
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
            self._refuse_unbounded()
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
        self._settled = self._settled and self._sampler is not None and same_rate(self._sampler, sampler)
        self._sampler = sampler
        # Rows may stand in another order now: a pass under way is not paid for under the new draws.
        self._budget.forget_pass()
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
        settings, self._row_memory = self.settings(), RowMemory()
        self._freezing.resume(self._module, self._trainer)
        self._freezing.begin(self._module)
        self._check()
        self._check_once_unfrozen()
        self._engine = self._new_engine(settings, NoiseSource(self._seed, self.global_rank))
        if self._manual is not None:
            self._manual.attach()
        self._freezing.changed(self.optimizers, manual=self._manual is not None)
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
        if self._freezing.changed(self.optimizers, manual=self._manual is not None):
            self._trains_otherwise()
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
        checkpoint[CHECKPOINT_KEY] = {**self.state_dict(), "trained": sorted(trained(self._module))}
        super().save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        if self._trainer.state.fn == TrainerFn.FITTING:
            if CHECKPOINT_KEY in checkpoint:
                self.load_state_dict(checkpoint[CHECKPOINT_KEY])
                self._freezing.load(checkpoint[CHECKPOINT_KEY].get("trained"))
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

    # --- manual optimisation ------------------------------------------------------------------------------------------

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

    # What a mechanism may do otherwise than DP-SGD.

    def _privatise(self, run_backward: Callable[[Tensor], Tensor], loss: Tensor, weights: Tensor | None) -> Tensor:
        """Adds the clipped gradients of the current physical batch, whose loss is there, to the engine's sum."""
        with self._running_engine.recording(self._units, weights):
            return run_backward(loss)

    def _at_point(self) -> AbstractContextManager[None]:
        """Around all passes of a step: the parameters at which its gradient is taken, themselves by default."""
        return nullcontext()

    def _write_gradients(self) -> None:
        """Turns the sum into the one private gradient."""
        if self._freezing.holds_others(self.optimizers):  # a group added within the step, before it is used
            refuse("optimizers", self._subject())
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

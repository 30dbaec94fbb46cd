"""The module and the engine of a private run: checked before the first step, and again when other parameters are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_dp import _compat
from lightning_dp.accounting import PrivacySettings
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import GradientEngine, NoiseSource, UnitMap, rows_of_units, units_of_batch
from lightning_dp.gradients.taps import uncompiled
from lightning_dp.strategies.freezing import not_called, once_unfrozen, trained_from_here, without_optimizer
from lightning_dp.strategies.manual import ManualOptimization
from lightning_dp.strategies.manualcheck import check_manual_module
from lightning_dp.strategies.planned import PlannedStrategy
from lightning_dp.strategies.refusals import refuse
from lightning_dp.strategies.selfcheck import Checks, check_module
from lightning_dp.strategies.step import step_arguments

__all__ = ("CheckedStrategy",)


class CheckedStrategy(PlannedStrategy):
    """Knows how the module is checked and its engine made. It takes no step itself.

    **Guarantee**: every parameter is looked at as trainable before the first step that trains it: by the refusals, by the
    bound of per-layer clipping, and by the self-check.

    Its arguments are those of :class:`~lightning_dp.strategies.planned.PlannedStrategy`.
    """

    @property
    def _running_engine(self) -> GradientEngine:
        if self._engine is None:
            raise PrivacyError("the private training step was called outside fit; nothing would privatise its gradient")
        return self._engine

    def _checks(self) -> Callable[..., Checks]:
        """The self-check's kind."""
        return Checks

    def _new_engine(self, settings: PrivacySettings, noise: NoiseSource) -> GradientEngine:
        return GradientEngine(
            self._module,
            self._bound.threshold or self.clipping,
            noise_multiplier=settings.noise_multiplier,
            expected_batch_size=settings.expected_batch_size,
            loss_reduction=self._loss_reduction,
            noise=noise,
            memory_limit=self._memory_limit,
            parameters=None if self._manual is None else self._manual.private_parameters,
            row_memory=self._row_memory,
        )

    def _refuse_unbounded(self, thawed: Sequence[str] = ()) -> None:
        """Refuses parameters to which per-layer clipping gives no bound."""
        parameters: list[nn.Parameter] | frozenset[nn.Parameter]
        if self._manual is None:
            parameters = [p for name, p in self._module.named_parameters() if p.requires_grad or name in thawed]
        else:
            parameters = self._manual.private_parameters
        self._bound.first.groups(self._module, parameters)

    def _check(self, thawed: Sequence[str] = ()) -> None:
        """The self-check of the module as it is, or with ``thawed`` trained as well."""
        if not self._self_check:
            return
        assert self._loader is not None
        if self._manual is None:
            check_module(
                self._module,
                dataset=self._loader.dataset,
                collate=self._loader.collate_fn,
                run_step=self._run_user_step,
                transfer=self._transfer,
                loss_reduction=self._loss_reduction,
                units_of=self._units_of,
                row_memory=self._row_memory,
                rows=self._rows,
                checks=self._checks(),
                thawed=thawed,
            )
        else:
            check_manual_module(
                self._module,
                public=self._subject().declared(),
                dataset=self._loader.dataset,
                collate=self._loader.collate_fn,
                run_step=self._run_user_step,
                transfer=self._transfer,
                loss_reduction=self._loss_reduction,
                units_of=self._units_of,
                rows=self._rows,
            )
        self._freezing.checked(self._module, thawed)

    def _check_once_unfrozen(self) -> None:
        """Looks now at what a callback froze for a while: a refusal later would throw the epochs before it away."""
        thawed = self._freezing.for_a_while(self._module)
        if thawed and _compat.skips_epoch_start(self._trainer):
            rank_zero_warn(not_called(thawed), category=PrivacyWarning)
        if not thawed or self._manual is not None:
            return
        try:
            self._refuse_unbounded(thawed)
            self._check(thawed)
        except (PrivacyError, PrivacyConfigError) as error:
            raise type(error)(once_unfrozen(thawed, error)) from error

    def _trains_otherwise(self) -> None:
        """Before the first step on other parameters than before: the refusals and the self-check once more."""
        refuse("module", self._subject())
        refuse("optimizers", self._subject())
        engine = self._running_engine
        if self._manual is not None:
            self._manual.detach()
            self._manual = self._follow_optimizers()
        self._refuse_unbounded()
        if self._manual is not None or not self._freezing.is_checked(self._module):
            self._check()
        if self._manual is not None:
            engine.close()
            self._engine = engine = self._new_engine(self.settings(), engine.noise)
            self._manual.attach()
        engine.follow_borrowed()
        if warning := without_optimizer(self._module, self.optimizers):
            rank_zero_warn(warning, category=PrivacyWarning)
        rank_zero_info(trained_from_here(self._module, self.clipping.max_grad_norm))

    # What they are made from.

    def _follow_optimizers(self) -> ManualOptimization:
        declared = set(self._subject().declared())
        return ManualOptimization(
            self.optimizers, [p for name, p in self._module.named_parameters() if name in declared]
        )

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

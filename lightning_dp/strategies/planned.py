"""What is settled of a private run before its first step, and what it reports: sampling, budget, bound, ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_dp.accounting import PrivacyLedger, PrivacySettings, PrivacySpent, Schedule
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError, PrivacyError, PrivacyWarning
from lightning_dp.gradients import AdaptiveThreshold, Clipping, GradientEngine, LossReduction, RowMemory, UnitMap
from lightning_dp.gradients.memory import Memory
from lightning_dp.sampling import (
    BallsInBinsSampler,
    LogicalSampler,
    PoissonSampler,
    PrivacyUnit,
    PrivateDataLoader,
    ShuffleSampler,
    TruncatedPoissonSampler,
    UnitRows,
    following_key,
    key_from_seed,
    loader_batch_size,
    new_key,
)
from lightning_dp.strategies.arguments import check_settings
from lightning_dp.strategies.bound import Bound
from lightning_dp.strategies.budget import Budget
from lightning_dp.strategies.freezing import Freezing
from lightning_dp.strategies.manual import ManualOptimization
from lightning_dp.strategies.processes import Processes, ProcessStrategy
from lightning_dp.strategies.refusals import Subject
from lightning_dp.strategies.step import StepUnderWay

__all__ = ("PlannedStrategy", "same_rate")


class PlannedStrategy(ProcessStrategy):
    """Knows how a run samples, what a step costs, how many there are, and what was spent. It takes no step itself.

    Args:
        mechanism: its name in reports.
        budget: eps or noise, and the ledger.
        clipping: the bound on each sample's gradient, and with it the noise's scale.
        sampling: ``"poisson"``, ``"truncated_poisson"``, ``"balls_in_bins"`` or ``"shuffle"``.
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
        check_settings(sampling, max_batch_size, physical_batch_size, loss_reduction)
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
        self._freezing, self._row_memory = Freezing(), RowMemory()
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
            bins=self._sampler.event(1.0).bins if self._sampling == "balls_in_bins" else None,
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

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _trainer(self) -> Trainer:
        return self._module.trainer

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

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
        else:
            self._key = following_key(self._key)
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
        kinds: dict[Sampling, Callable[[int, int, bytes], LogicalSampler]]
        kinds = {"poisson": PoissonSampler, "balls_in_bins": BallsInBinsSampler, "shuffle": ShuffleSampler}
        return kinds[self._sampling](n, min(batch_size, n), self._key)

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


def same_rate(a: LogicalSampler, b: LogicalSampler) -> bool:
    """Whether two samplers draw at the same rate, so that what was settled for one holds for the other."""
    return (a.dataset_size, a.expected_batch_size) == (b.dataset_size, b.expected_batch_size)

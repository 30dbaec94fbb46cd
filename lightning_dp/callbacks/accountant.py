"""Eps where it is looked for: in the progress bar, in every logger, and in a summary at the end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.accounting import PrivacySpent
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.callbacks.releases import Release, uncovered_releases
from lightning_dp.callbacks.summary import summary_text
from lightning_dp.errors import PrivacyWarning

__all__ = ("PrivacyAccountant",)


class PrivacyAccountant(Callback):
    """Shows what a private run spends and says which released numbers its eps does not cover.

    Logs ``privacy/epsilon`` (an upper bound, exact at the planned end) in every step that the loggers write down; in between
    it is the value that the next of these steps will have. Writes the run's settings to the loggers' hyper-parameters, and
    ends ``fit`` with a summary. The ledger itself lives in the strategy: this callback can
    be left out, replaced or added twice without changing what is spent.

    Beside a strategy that is not private it says so once and does nothing else.

    Args:
        prog_bar: whether eps is shown in the progress bar.
        summary: whether the summary is written at the end of ``fit``.

    Attributes:
        spent: what was spent, after ``fit``.
        releases: the numbers that left the run uncovered, after ``fit``.
    """

    def __init__(self, prog_bar: bool = True, summary: bool = True) -> None:
        self.prog_bar, self.summary = prog_bar, summary
        self.spent: PrivacySpent | None = None
        self.releases: list[Release] = []
        self._logged: set[str] = set()
        self._exact = False
        self._private: PrivateStrategy | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged, self.releases, self.spent = set(), [], None
        strategy = trainer.strategy
        self._private = strategy if isinstance(strategy, PrivateStrategy) else None  # asking costs: not in every step
        if self._private is None:
            rank_zero_warn(
                f"PrivacyAccountant has nothing to account: {type(strategy).__name__} trains without differential "
                "privacy (eps = inf). Use Trainer(strategy=DPStrategy(eps=...)) for a private run.",
                category=PrivacyWarning,
            )
            return
        settings = {
            f"privacy/{key}": value for key, value in asdict(self._private.settings()).items() if value is not None
        }
        for logger in trainer.loggers:  # here, before loggers write their hyper-parameter files
            logger.log_hyperparams(settings)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._private is not None:
            self._log_epsilon(trainer, self._private, batch_idx)
            if batch_idx == 0:
                self._logged |= _compat.names_logged_in_training(trainer)

    def _log_epsilon(self, trainer: Trainer, strategy: PrivateStrategy, batch_idx: int) -> None:
        """Logs eps when a logger writes it down, and what it will be by then in between.

        ``self.log`` costs more than the accounting, so it is not called in every step. What it holds in between can end
        up in a checkpoint's name, where it must not be too small.
        """
        waiting = _compat.batches_until_logging(trainer)
        now = waiting == 0 or trainer.is_last_batch or trainer.should_stop
        if now or self._exact or batch_idx == 0:
            ahead = 0 if now else int(min(waiting, trainer.num_training_batches - batch_idx - 1))
            # batch_size=1: the number of samples drawn is private, and eps has no use for it.
            self.log(  # type: ignore[attr-defined]
                "privacy/epsilon", strategy.epsilon(ahead), prog_bar=self.prog_bar, on_step=True, batch_size=1
            )
        self._exact = now

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged |= _compat.names_logged_in_training(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = self._private
        if strategy is None:
            return
        self.spent = strategy.privacy_spent()
        self.releases = uncovered_releases(trainer, self._logged, strategy.settings())
        if self.summary:
            rank_zero_info(summary_text(self.spent, strategy.settings(), self.releases))

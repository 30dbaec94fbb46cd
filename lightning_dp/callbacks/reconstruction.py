"""How well training data could be reconstructed from what a run released: the risk beside the eps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_dp.accounting import RiskCorridor, kappa_of, membership_bound, reconstruction_bound, risk_corridor
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.errors import PrivacyConfigError, PrivacyWarning
from lightning_dp.report import new_figure

__all__ = ("ReconstructionRiskMonitor",)


class ReconstructionRiskMonitor(Callback):
    """Turns the ledger of a private run into chances of success of attacks that reconstruct training data.

    Logs ``privacy/reconstruction_gamma`` (an upper bound for every attacker, arXiv 2307.03928) at the end of epochs, and at the
    end of ``fit`` computes the whole corridor: the worst case, which is a guarantee; the relaxed adversary (arXiv
    2210.13028) and, with a ``dimension``, reconstruction from scratch (arXiv 2402.12861), which are **not** guarantees and
    are logged under names that say so. Reads the ledger alone, never data.

    Beside a strategy that is not private it warns once, and logs a chance of 1: nothing bounds it.

    Args:
        kappa: chance that a blind guess at the record succeeds; ``None`` means 1/n.
        dimension: how many real numbers a sample consists of (a complex one counts as two); ``None`` leaves the attack from
            scratch out.
        data_norm: smallest L2 norm of a sample.
        data_range: largest minus smallest value of a number in it.
        mse: mean squared error that counts as a success from scratch; ``None``: what a blank image achieves.
        every_n_epochs: how often the bound is computed during training; 0 only at the end.

    Attributes:
        corridor: the result, after ``fit``; ``None`` for a run that is not private.

    Raises:
        PrivacyConfigError: for values out of range.
    """

    def __init__(
        self,
        kappa: float | None = None,
        *,
        dimension: int | None = None,
        data_norm: float = 1.0,
        data_range: float = 1.0,
        mse: float | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        if every_n_epochs != int(every_n_epochs) or every_n_epochs < 0:
            raise PrivacyConfigError(f"every_n_epochs={every_n_epochs!r} must be a whole number >= 0")
        # Refuses values out of range now and not after a day of training: a ledger without steps costs nothing.
        risk_corridor(
            (), kappa=0.5 if kappa is None else kappa, dimension=dimension, data_norm=data_norm, data_range=data_range, mse=mse
        )  # fmt: skip
        self.kappa, self.dimension, self.data_norm, self.data_range, self.mse = (
            kappa, dimension, data_norm, data_range, mse
        )  # fmt: skip
        self.every_n_epochs = every_n_epochs
        self.corridor: RiskCorridor | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.corridor = None
        if not isinstance(trainer.strategy, PrivateStrategy):
            rank_zero_warn(
                f"ReconstructionRiskMonitor: {type(trainer.strategy).__name__} trains without differential privacy, so nothing "
                "bounds the chance that training data are reconstructed; it is logged as 1.",
                category=PrivacyWarning,
            )

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs == 0 or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        strategy = trainer.strategy
        gamma = 1.0
        if isinstance(strategy, PrivateStrategy):
            kappa = kappa_of(self.kappa, strategy.settings().dataset_size)
            gamma = reconstruction_bound(strategy.ledger.entries, kappa).gamma
        self.log("privacy/reconstruction_gamma", gamma, on_step=False, on_epoch=True, batch_size=1)  # type: ignore[attr-defined]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if not isinstance(strategy, PrivateStrategy):
            return
        entries = strategy.ledger.entries
        self.corridor = risk_corridor(
            entries,
            kappa=self.kappa,
            dataset_size=strategy.settings().dataset_size,
            dimension=self.dimension,
            data_norm=self.data_norm,
            data_range=self.data_range,
            mse=self.mse,
        )
        rows = self.corridor.rows()
        values = {
            "privacy/reconstruction_gamma": rows[0].probability,
            "privacy/reconstruction_relaxed_no_guarantee": rows[1].probability,
            "privacy/membership_advantage": membership_bound(entries).advantage,
        }
        if len(rows) > 2:
            values["privacy/reconstruction_from_scratch_no_guarantee"] = rows[2].probability
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        lines = [f"  {row.name:<22} {row.probability:.4g}  {row.meaning}" for row in rows]
        rank_zero_info("\n".join(["", "Chance of reconstruction from what this run released", *lines]))

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The corridor as bars, strongest attacker first.

        Args:
            ax: where to draw; a new figure by default.

        Returns:
            The figure and its axes.

        Raises:
            PrivacyConfigError: before a private ``fit`` has ended.
        """
        if self.corridor is None:
            raise PrivacyConfigError("there is no corridor yet: plot after a private fit has ended")
        figure, axes = new_figure() if ax is None else (ax.figure, ax)
        rows = self.corridor.rows()[::-1]
        names = [f"{row.name}\n({'guarantee' if row.is_guarantee else 'no guarantee'})" for row in rows]
        axes.barh(names, [row.probability for row in rows])
        axes.axvline(self.corridor.kappa, linestyle=":", color="grey")
        axes.set(xlim=(0, 1), xlabel=f"chance of reconstruction (dotted: blind guess, {self.corridor.kappa:.3g})")
        return figure, axes

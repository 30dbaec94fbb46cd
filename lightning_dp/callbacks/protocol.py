"""What callbacks know of a private strategy, and all they may know: so they also run beside any other."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lightning_dp.accounting import PrivacyLedger, PrivacySettings, PrivacySpent

__all__ = ("PrivateStrategy",)


@runtime_checkable
class PrivateStrategy(Protocol):
    """A strategy that keeps a privacy ledger."""

    @property
    def ledger(self) -> PrivacyLedger:
        """Everything that was spent."""
        ...

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over sensitivity."""
        ...

    def settings(self) -> PrivacySettings:
        """The public facts of the run."""
        ...

    def privacy_spent(self) -> PrivacySpent:
        """What was spent so far, by the chosen accountant."""
        ...

    def epsilon(self, ahead: int = 0) -> float:
        """A cheap upper bound on eps after ``ahead`` more batches; 0: so far."""
        ...

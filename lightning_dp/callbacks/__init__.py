"""Lightning callbacks that report what a run spent and what its guarantee means."""

from __future__ import annotations

from lightning_dp.callbacks.accountant import PrivacyAccountant
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.callbacks.reconstruction import ReconstructionRiskMonitor
from lightning_dp.callbacks.releases import Release, uncovered_releases
from lightning_dp.callbacks.report import RiskReport

__all__ = (
    "PrivacyAccountant",
    "PrivateStrategy",
    "ReconstructionRiskMonitor",
    "Release",
    "RiskReport",
    "uncovered_releases",
)

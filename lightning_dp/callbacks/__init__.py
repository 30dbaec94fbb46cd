"""Lightning callbacks that report what a run spent and what its guarantee means."""

from __future__ import annotations

from lightning_dp.callbacks.accountant import PrivacyAccountant
from lightning_dp.callbacks.posterior import PosteriorCalibration, PosteriorStrategy
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.callbacks.releases import Release, uncovered_releases

__all__ = (
    "PosteriorCalibration",
    "PosteriorStrategy",
    "PrivacyAccountant",
    "PrivateStrategy",
    "Release",
    "uncovered_releases",
)

"""Lightning callbacks that report what a run spent and what its guarantee means."""

from __future__ import annotations

from lightning_dp.callbacks.abstaining import AbstainingEnsemble, EnsembleAnswer
from lightning_dp.callbacks.accountant import PrivacyAccountant
from lightning_dp.callbacks.calibration_monitor import CalibrationMonitor
from lightning_dp.callbacks.ensemble_budget import EnsembleBudget, Spending, ensemble_budget
from lightning_dp.callbacks.extraction import Predictions
from lightning_dp.callbacks.fairness_monitor import FairnessMonitor
from lightning_dp.callbacks.members import HasPosterior, Members
from lightning_dp.callbacks.multiplicity_monitor import MultiplicityMonitor
from lightning_dp.callbacks.posterior import PosteriorCalibration, PosteriorStrategy
from lightning_dp.callbacks.protocol import PrivateStrategy
from lightning_dp.callbacks.reconstruction import ReconstructionRiskMonitor
from lightning_dp.callbacks.releases import Release, uncovered_releases
from lightning_dp.callbacks.report import RiskReport

__all__ = (
    "AbstainingEnsemble",
    "CalibrationMonitor",
    "EnsembleAnswer",
    "EnsembleBudget",
    "FairnessMonitor",
    "HasPosterior",
    "Members",
    "MultiplicityMonitor",
    "PosteriorCalibration",
    "PosteriorStrategy",
    "Predictions",
    "PrivacyAccountant",
    "PrivateStrategy",
    "ReconstructionRiskMonitor",
    "Release",
    "RiskReport",
    "Spending",
    "ensemble_budget",
    "uncovered_releases",
)

"""Measures of what a model's predictions mean: calibration and fairness, by group and exact over ranks."""

from __future__ import annotations

from lightning_dp.metrics.calibration import Calibration
from lightning_dp.metrics.estimate import Estimate, wilson_interval
from lightning_dp.metrics.fairness import Fairness
from lightning_dp.metrics.functional.calibration_result import CalibrationResult, CalibrationRow, ReliabilityBin
from lightning_dp.metrics.functional.fairness_result import FairnessResult, Gap, GroupRow, OutcomeRow
from lightning_dp.metrics.groups import Groups

__all__ = (
    "Calibration",
    "CalibrationResult",
    "CalibrationRow",
    "Estimate",
    "Fairness",
    "FairnessResult",
    "Gap",
    "GroupRow",
    "Groups",
    "OutcomeRow",
    "ReliabilityBin",
    "wilson_interval",
)

"""The measures as pure functions: sums of samples, and results made of sums."""

from __future__ import annotations

from lightning_dp.metrics.functional.calibration import (
    CalibrationCounts,
    adaptive_calibration_error,
    calibration,
    calibration_counts,
    calibration_result,
)
from lightning_dp.metrics.functional.fairness import FairnessCounts, fairness, fairness_counts, fairness_result
from lightning_dp.metrics.functional.outcomes import Outcomes
from lightning_dp.metrics.functional.ranking import auroc_from_cells

__all__ = (
    "CalibrationCounts",
    "FairnessCounts",
    "Outcomes",
    "adaptive_calibration_error",
    "auroc_from_cells",
    "calibration",
    "calibration_counts",
    "calibration_result",
    "fairness",
    "fairness_counts",
    "fairness_result",
)

"""The measures as pure functions: sums of samples, and results made of sums."""

from __future__ import annotations

from lightning_dp.metrics.functional.abstention import (
    Abstention,
    answer,
    ensemble_ambiguity,
    rashomon_set,
    rashomon_set_by_test,
)
from lightning_dp.metrics.functional.calibration import (
    CalibrationCounts,
    adaptive_calibration_error,
    calibration,
    calibration_counts,
    calibration_result,
    calibration_zeros,
)
from lightning_dp.metrics.functional.compare_auroc import AUROCComparison, compare_auroc
from lightning_dp.metrics.functional.dice import dice, dice_counts
from lightning_dp.metrics.functional.fairness import (
    FairnessCounts,
    fairness,
    fairness_counts,
    fairness_result,
    fairness_zeros,
)
from lightning_dp.metrics.functional.multiplicity import (
    MultiplicityCounts,
    multiplicity_counts,
    multiplicity_result,
    multiplicity_zeros,
)
from lightning_dp.metrics.functional.object_counts import (
    CountCurve,
    count_area,
    count_curve,
    count_hits,
    object_count_area,
)
from lightning_dp.metrics.functional.outcomes import Outcomes
from lightning_dp.metrics.functional.ranking import aurocs_from_cells, delong_auroc
from lightning_dp.metrics.functional.selective import (
    SelectiveCounts,
    area_under_risk_coverage,
    selective,
    selective_counts,
    selective_result,
    selective_zeros,
)

__all__ = (
    "AUROCComparison",
    "Abstention",
    "CalibrationCounts",
    "CountCurve",
    "FairnessCounts",
    "MultiplicityCounts",
    "Outcomes",
    "SelectiveCounts",
    "adaptive_calibration_error",
    "answer",
    "area_under_risk_coverage",
    "aurocs_from_cells",
    "calibration",
    "calibration_counts",
    "calibration_result",
    "calibration_zeros",
    "compare_auroc",
    "count_area",
    "count_curve",
    "count_hits",
    "delong_auroc",
    "dice",
    "dice_counts",
    "ensemble_ambiguity",
    "fairness",
    "fairness_counts",
    "fairness_result",
    "fairness_zeros",
    "multiplicity_counts",
    "multiplicity_result",
    "multiplicity_zeros",
    "object_count_area",
    "rashomon_set",
    "rashomon_set_by_test",
    "selective",
    "selective_counts",
    "selective_result",
    "selective_zeros",
)

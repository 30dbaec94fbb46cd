"""Measures of what a model's predictions mean, by group and exact over ranks.

Calibration, fairness, selective prediction and multiplicity, as torchmetrics metrics. Their pure functions are in
`lightning_dp.metrics.functional`.
"""

from __future__ import annotations

from lightning_dp.metrics.calibration import Calibration
from lightning_dp.metrics.estimate import Estimate, wilson_interval
from lightning_dp.metrics.fairness import Fairness
from lightning_dp.metrics.functional.abstention import (
    Abstention,
    answer,
    ensemble_ambiguity,
    rashomon_set,
    rashomon_set_by_test,
)
from lightning_dp.metrics.functional.calibration_result import CalibrationResult, CalibrationRow, ReliabilityBin
from lightning_dp.metrics.functional.fairness_result import FairnessResult, Gap, GroupRow, OutcomeRow
from lightning_dp.metrics.functional.multiplicity_result import EnsembleRow, MultiplicityResult, MultiplicityRow
from lightning_dp.metrics.functional.ranking import delong_auroc
from lightning_dp.metrics.functional.selective_result import (
    OperatingPoint,
    RiskCoverageCurve,
    SelectiveResult,
    SelectiveRow,
)
from lightning_dp.metrics.groups import Groups
from lightning_dp.metrics.multiplicity import Multiplicity
from lightning_dp.metrics.object_counts import ObjectCountArea
from lightning_dp.metrics.segmentation import SegmentationDice
from lightning_dp.metrics.selective import SelectivePrediction
from lightning_dp.metrics.tally import MemberTally

__all__ = (
    "Abstention",
    "Calibration",
    "CalibrationResult",
    "CalibrationRow",
    "EnsembleRow",
    "Estimate",
    "Fairness",
    "FairnessResult",
    "Gap",
    "GroupRow",
    "Groups",
    "MemberTally",
    "Multiplicity",
    "MultiplicityResult",
    "MultiplicityRow",
    "ObjectCountArea",
    "OperatingPoint",
    "OutcomeRow",
    "ReliabilityBin",
    "RiskCoverageCurve",
    "SegmentationDice",
    "SelectivePrediction",
    "SelectiveResult",
    "SelectiveRow",
    "answer",
    "delong_auroc",
    "ensemble_ambiguity",
    "rashomon_set",
    "rashomon_set_by_test",
    "wilson_interval",
)

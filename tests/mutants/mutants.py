"""Faults that were, or could have been: each must turn at least one test red.

An edit replaces one piece of text that occurs exactly once in its file. When the code changes and a piece is no longer
found, the check stops: the fault must then be planted again in the new code, and not be forgotten.
"""

from __future__ import annotations

from tests.mutants.fault import Mutant
from tests.mutants.faults.accounting import ACCOUNTING_FAULTS
from tests.mutants.faults.ascent import ASCENT_FAULTS
from tests.mutants.faults.chest_xray import CHEST_XRAY_FAULTS
from tests.mutants.faults.clipping import CLIPPING_FAULTS
from tests.mutants.faults.complex import COMPLEX_FAULTS
from tests.mutants.faults.detection import DETECTION_FAULTS
from tests.mutants.faults.freezing import FREEZING_FAULTS
from tests.mutants.faults.langevin import LANGEVIN_FAULTS
from tests.mutants.faults.leak import LEAK_FAULTS
from tests.mutants.faults.manual import MANUAL_FAULTS
from tests.mutants.faults.mesh import MESH_FAULTS
from tests.mutants.faults.monitor import MONITOR_FAULTS
from tests.mutants.faults.neural import NEURAL_FAULTS
from tests.mutants.faults.noise import NOISE_FAULTS
from tests.mutants.faults.picture import PICTURE_FAULTS
from tests.mutants.faults.report import REPORT_FAULTS
from tests.mutants.faults.risk import RISK_FAULTS
from tests.mutants.faults.sampling import SAMPLING_FAULTS
from tests.mutants.faults.segmentation import SEGMENTATION_FAULTS
from tests.mutants.faults.strategy import STRATEGY_FAULTS
from tests.mutants.faults.volume import VOLUME_FAULTS

__all__ = ("MUTANTS",)

MUTANTS: tuple[Mutant, ...] = (
    *CLIPPING_FAULTS,
    *NOISE_FAULTS,
    *LEAK_FAULTS,
    *SAMPLING_FAULTS,
    *ACCOUNTING_FAULTS,
    *MANUAL_FAULTS,
    *STRATEGY_FAULTS,
    *FREEZING_FAULTS,
    *RISK_FAULTS,
    *ASCENT_FAULTS,
    *LANGEVIN_FAULTS,
    *NEURAL_FAULTS,
    *MONITOR_FAULTS,
    *REPORT_FAULTS,
    *PICTURE_FAULTS,
    *CHEST_XRAY_FAULTS,
    *COMPLEX_FAULTS,
    *DETECTION_FAULTS,
    *MESH_FAULTS,
    *SEGMENTATION_FAULTS,
    *VOLUME_FAULTS,
)

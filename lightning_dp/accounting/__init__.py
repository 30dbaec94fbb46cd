"""Accounting: from mechanism events to eps, noise, and bounds on attackers; no torch, no Lightning.

Every eps and delta of this package is an upper bound under the add-or-remove-one relation.
"""

from __future__ import annotations

from lightning_dp.accounting.accountants import Accountant, PLDAccountant, RDPAccountant, get_accountant
from lightning_dp.accounting.calibration import affordable_prefix, affordable_steps, calibrate_noise_multiplier
from lightning_dp.accounting.events import RELATION, GaussianEvent
from lightning_dp.accounting.ledger import LedgerEntry, PrivacyLedger
from lightning_dp.accounting.meter import EpsilonMeter
from lightning_dp.accounting.prv import PRVAccountant
from lightning_dp.accounting.schedules import CosineSchedule, LinearSchedule, Schedule, StepSchedule, pieces
from lightning_dp.accounting.sensitivity_index import SensitivityIndex, equivalent_sensitivity_index
from lightning_dp.accounting.settings import PrivacySettings
from lightning_dp.accounting.spent import PrivacySpent, privacy_spent
from lightning_dp.accounting.temperature import LangevinLaw
from lightning_dp.accounting.tradeoff import TradeOffCurve

__all__ = (
    "RELATION",
    "Accountant",
    "CosineSchedule",
    "EpsilonMeter",
    "GaussianEvent",
    "LangevinLaw",
    "LedgerEntry",
    "LinearSchedule",
    "PLDAccountant",
    "PRVAccountant",
    "PrivacyLedger",
    "PrivacySettings",
    "PrivacySpent",
    "RDPAccountant",
    "Schedule",
    "SensitivityIndex",
    "StepSchedule",
    "TradeOffCurve",
    "affordable_prefix",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "equivalent_sensitivity_index",
    "get_accountant",
    "pieces",
    "privacy_spent",
)

"""Accounting: from mechanism events to eps, noise, and bounds on attackers; no torch, no Lightning.

Every eps and delta of this package is an upper bound under the neighbouring relation that its events name:
add-or-remove-one for training, and add-or-remove-one or replace-one for noisy releases.
"""

from __future__ import annotations

from lightning_dp.accounting.accountants import Accountant, PLDAccountant, RDPAccountant, get_accountant
from lightning_dp.accounting.calibration import (
    EquivalentBudget,
    affordable_prefix,
    affordable_steps,
    affordable_within,
    calibrate_noise_multiplier,
    calibrate_to,
    eps_within,
)
from lightning_dp.accounting.complex_noise import NoiseConvention, per_part_noise_multiplier
from lightning_dp.accounting.events import RELATION, Event, GaussianEvent, RandomizedResponseEvent, Relation
from lightning_dp.accounting.ledger import LedgerEntry, PrivacyLedger
from lightning_dp.accounting.meter import EpsilonMeter
from lightning_dp.accounting.prv import PRVAccountant
from lightning_dp.accounting.releases import RELEASE_SENSITIVITY, release_event
from lightning_dp.accounting.risk import (
    FromScratchAttack,
    MembershipBound,
    ReconstructionBound,
    RelaxedRisk,
    RiskCorridor,
    RiskRow,
    dp_gamma,
    edgeworth_gamma,
    from_scratch_attack,
    gaussian_gamma,
    glrt_power,
    glrt_reverse_power,
    kappa_of,
    laplace_gamma,
    membership_bound,
    noise_multiplier_against_reconstruction,
    reconstruction_bound,
    relaxed_risk,
    risk_corridor,
    subsampled_gamma,
)
from lightning_dp.accounting.schedules import CosineSchedule, LinearSchedule, Schedule, StepSchedule, pieces
from lightning_dp.accounting.sensitivity_index import SensitivityIndex, equivalent_sensitivity_index
from lightning_dp.accounting.settings import PrivacySettings
from lightning_dp.accounting.spent import PrivacySpent, privacy_spent
from lightning_dp.accounting.targets import EpsilonTarget, MembershipRisk, ReconstructionRisk, Target
from lightning_dp.accounting.temperature import LangevinLaw
from lightning_dp.accounting.tradeoff import TradeOffCurve

__all__ = (
    "RELATION",
    "RELEASE_SENSITIVITY",
    "Accountant",
    "CosineSchedule",
    "EpsilonMeter",
    "EpsilonTarget",
    "EquivalentBudget",
    "FromScratchAttack",
    "Event",
    "GaussianEvent",
    "LangevinLaw",
    "LedgerEntry",
    "LinearSchedule",
    "MembershipBound",
    "MembershipRisk",
    "NoiseConvention",
    "PLDAccountant",
    "PRVAccountant",
    "PrivacyLedger",
    "PrivacySettings",
    "PrivacySpent",
    "RDPAccountant",
    "ReconstructionBound",
    "ReconstructionRisk",
    "RelaxedRisk",
    "RiskCorridor",
    "RiskRow",
    "RandomizedResponseEvent",
    "Relation",
    "Schedule",
    "SensitivityIndex",
    "StepSchedule",
    "Target",
    "TradeOffCurve",
    "affordable_prefix",
    "affordable_steps",
    "affordable_within",
    "calibrate_noise_multiplier",
    "calibrate_to",
    "dp_gamma",
    "edgeworth_gamma",
    "eps_within",
    "equivalent_sensitivity_index",
    "from_scratch_attack",
    "gaussian_gamma",
    "get_accountant",
    "glrt_power",
    "glrt_reverse_power",
    "kappa_of",
    "laplace_gamma",
    "membership_bound",
    "noise_multiplier_against_reconstruction",
    "per_part_noise_multiplier",
    "pieces",
    "privacy_spent",
    "reconstruction_bound",
    "relaxed_risk",
    "risk_corridor",
    "subsampled_gamma",
    "release_event",
)

"""What an attacker can reach: reconstruction and membership, as guarantees and under weaker assumptions."""

from __future__ import annotations

from lightning_dp.accounting.risk.closed_forms import (
    dp_gamma,
    gaussian_gamma,
    kappa_of,
    laplace_gamma,
    subsampled_gamma,
)
from lightning_dp.accounting.risk.corridor import RiskCorridor, RiskRow, risk_corridor
from lightning_dp.accounting.risk.edgeworth import edgeworth_gamma
from lightning_dp.accounting.risk.from_scratch import (
    FromScratchAttack,
    from_scratch_attack,
    noise_multiplier_against_reconstruction,
)
from lightning_dp.accounting.risk.reconstruction import (
    MembershipBound,
    ReconstructionBound,
    membership_bound,
    reconstruction_bound,
)
from lightning_dp.accounting.risk.relaxed import RelaxedRisk, glrt_power, glrt_reverse_power, relaxed_risk

__all__ = (
    "FromScratchAttack",
    "MembershipBound",
    "ReconstructionBound",
    "RelaxedRisk",
    "RiskCorridor",
    "RiskRow",
    "dp_gamma",
    "edgeworth_gamma",
    "from_scratch_attack",
    "gaussian_gamma",
    "glrt_power",
    "glrt_reverse_power",
    "kappa_of",
    "laplace_gamma",
    "membership_bound",
    "noise_multiplier_against_reconstruction",
    "reconstruction_bound",
    "relaxed_risk",
    "risk_corridor",
    "subsampled_gamma",
)

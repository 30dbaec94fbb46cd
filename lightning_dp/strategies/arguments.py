"""Which budgets, deltas and settings of a private run are none: pure checks, each with the fix in its message."""

from __future__ import annotations

import math
from typing import get_args

from lightning_dp.accounting import EpsilonTarget, GaussianEvent, Target
from lightning_dp.accounting.events import Sampling
from lightning_dp.errors import PrivacyConfigError

__all__ = ("check_arguments", "check_settings", "check_tail", "default_delta", "is_number")


def default_delta(delta: float | None, n: int) -> float:
    """1/(10 n) unless given. Raises PrivacyConfigError for a delta of 1/n or more."""
    if delta is None:
        return 1 / (10 * n)
    if delta >= 1 / n:
        raise PrivacyConfigError(
            f"delta={delta:g} is not below 1/n = {1 / n:g}: a mechanism that publishes one person's record "
            f"outright would satisfy it. Use delta=None for 1/(10 n) = {1 / (10 * n):g}, or less."
        )
    return delta


def check_arguments(
    eps: float | None,
    delta: float | None,
    noise_multiplier: float | None,
    risk: Target | None = None,
    noise_follows: bool = False,
) -> None:
    """Refuses anything but one of eps, noise and a limit on an attack, with PrivacyConfigError."""
    budgets = {"eps": eps, "noise_multiplier": noise_multiplier, "risk": risk}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1 and not (noise_follows and not given):
        raise PrivacyConfigError(
            f"{' and '.join(given) or 'neither eps nor noise_multiplier nor risk'} given. Give exactly one: eps (the noise is "
            "calibrated to it, e.g. DPStrategy(eps=8)), noise_multiplier (eps is reported; 0 trains without privacy) or risk "
            "(the noise is calibrated to a limit on an attack, e.g. DPStrategy(risk=ReconstructionRisk(gamma=0.1)))."
        )
    if risk is not None and (not isinstance(risk, Target) or isinstance(risk, EpsilonTarget)):
        raise PrivacyConfigError(
            f"risk={risk!r} must be a ReconstructionRisk or a MembershipRisk; a budget in eps is DPStrategy(eps=...)"
        )
    if eps is not None and not (is_number(eps) and 0 < eps < math.inf):
        raise PrivacyConfigError(f"eps={eps!r} must be a positive, finite number; smaller means more private")
    if delta is not None and not (is_number(delta) and 0 < delta < 1):
        raise PrivacyConfigError(f"delta={delta!r} must lie strictly between 0 and 1; None means 1/(10 n)")
    if noise_multiplier is not None and not (is_number(noise_multiplier) and 0 <= noise_multiplier < math.inf):
        raise PrivacyConfigError(f"noise_multiplier={noise_multiplier!r} must be a finite number >= 0")


def check_settings(
    sampling: str, max_batch_size: int | None, physical_batch_size: int | None, loss_reduction: str
) -> None:
    """Refuses an unknown sampling or reduction, and batch sizes that are none, with PrivacyConfigError."""
    if sampling not in get_args(Sampling):
        raise PrivacyConfigError(f"unknown sampling {sampling!r}; choose one of {get_args(Sampling)}")
    if (sampling == "truncated_poisson") != (max_batch_size is not None):
        raise PrivacyConfigError(
            f"sampling={sampling!r} with max_batch_size={max_batch_size!r}: sampling='truncated_poisson' cuts draws at "
            "max_batch_size, so give both or neither. To fit a batch into memory without cutting it, use "
            "physical_batch_size."
        )
    whole = isinstance(physical_batch_size, int) and not isinstance(physical_batch_size, bool)
    if physical_batch_size is not None and not (whole and physical_batch_size >= 1):
        raise PrivacyConfigError(f"physical_batch_size={physical_batch_size!r} must be a whole number >= 1, or None")
    if loss_reduction not in ("mean", "sum"):
        raise PrivacyConfigError(f"unknown loss_reduction {loss_reduction!r}; choose 'mean' or 'sum'")


def check_tail(event: GaussianEvent, planned: int, delta: float, n: int) -> None:
    """Draws that are cut too often cost more delta than there is; says how large the cap must be."""
    if event.tail * planned < delta:
        return
    expected, load = event.sample_rate * n, math.log(100 * planned / delta)
    enough = math.ceil(expected + load / 3 + math.sqrt(load * load / 9 + 2 * expected * load))  # Bernstein's inequality
    raise PrivacyConfigError(
        f"the chance that one of {planned} batches has to be cut at max_batch_size is {min(1.0, event.tail * planned):.3g}, "
        f"and delta={delta:g} must cover it: no noise makes up for that. Use max_batch_size={enough} (then eps does not "
        "notice), or sampling='poisson' with a physical_batch_size."
    )


def is_number(value: object) -> bool:
    """Whether it is an int or a float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""Opacus' privacy random variables as an accountant, fenced against its memory use."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_dp.accounting.accountants import ComposingAccountant, failure, without_noise
from lightning_dp.accounting.ledger import LedgerEntry, gaussian_steps, merge_entries
from lightning_dp.accounting.renyi import rdp_epsilon, rdp_of_entries
from lightning_dp.errors import PrivacyConfigError

__all__ = ("PRVAccountant",)

_EPS_ERROR = 0.01
_MAX_POINTS = 1 << 22
_MAX_LOSS = 500.0


class PRVAccountant(ComposingAccountant):
    """Numerical composition by Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848), as implemented in Opacus.

    An *estimate* with stated error bounds: eps within 0.01 and delta within a thousandth, in the direction of
    removing a unit; the upper ends are returned. Its grid grows with eps, so its size is estimated first and
    a large one refused: a cross-check at moderate eps rather than a default.
    """

    name = "prv"

    @override
    def gaussian_epsilon(self, entries: Sequence[LedgerEntry], delta: float) -> float:
        """See :class:`ComposingAccountant`.

        Raises:
            PrivacyConfigError: If the grid would be too large, or delta is too small for its floating-point
                error.
        """
        if not entries:
            return 0.0
        if without_noise(entries):
            return math.inf
        delta = delta - failure(entries)
        if delta <= 0.0:
            return math.inf
        delta_error = delta / 1000.0
        with _strict():
            composed = _compose(entries, delta_error)
            try:
                _, _, upper = composed.compute_epsilon(delta, delta_error, _EPS_ERROR)
            except (ValueError, RuntimeError) as error:
                raise PrivacyConfigError(_advice(f"cannot answer at delta = {delta} ({error})")) from error
        if not math.isfinite(upper):
            raise PrivacyConfigError(_advice(f"returned eps = {upper}"))
        return max(0.0, float(upper))

    @override
    def gaussian_delta(self, entries: Sequence[LedgerEntry], eps: float) -> float:
        """See :class:`ComposingAccountant`; never below 1e-10, the error its grid is laid out for."""
        if not entries:
            return 0.0
        if without_noise(entries):
            return 1.0
        delta_error = 1e-10
        with _strict():
            composed = _compose(entries, delta_error)
            estimate = float(composed.compute_delta_estimate(eps - _EPS_ERROR))
        if not math.isfinite(estimate):
            raise PrivacyConfigError(_advice(f"returned delta = {estimate}"))
        return min(1.0, max(0.0, estimate) + delta_error + failure(entries))


class _strict(warnings.catch_warnings):
    """Opacus divides by zero at rate 1, harmlessly; an inaccurate integral is not harmless."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        return entered


def _advice(what: str) -> str:
    return f"The PRV accountant {what}: use accountant='pld', which is tight at any eps."


def _compose(entries: Sequence[LedgerEntry], delta_error: float) -> Any:
    merged = merge_entries(entries)
    steps = [entry.steps for entry in merged]
    # Remark 5.6 of the paper: the grid must reach the eps of the whole at delta_error / 4 and of any step
    # alone.
    losses = [rdp_epsilon(rdp_of_entries(merged), delta_error / 4.0)]
    for entry in merged:
        single = rdp_of_entries([LedgerEntry(entry.event, 1)])
        losses.append(rdp_epsilon(single, delta_error / (8.0 * sum(steps))))
    reach = max(*losses, _EPS_ERROR) + 3.0
    mesh = _EPS_ERROR / math.sqrt(sum(steps) * math.log(12.0 / delta_error) / 2.0)
    points = 2.0 * reach / mesh
    if not (points <= _MAX_POINTS and reach <= _MAX_LOSS):
        raise PrivacyConfigError(_advice(f"would need {points:.3g} grid points up to a loss of {reach:.3g}"))
    # Imported late: Opacus imports torch, which this package does without.
    from opacus.accountants.analysis import prv

    domain = prv.Domain.create_aligned(-reach, reach, mesh)
    try:
        discrete = []
        for event, _ in gaussian_steps(merged):
            variable = prv.PoissonSubsampledGaussianPRV(event.sample_rate, event.noise_multiplier)
            truncated = prv.TruncatedPrivacyRandomVariable(variable, domain.t_min, domain.t_max)
            discrete.append(prv.discretize(truncated, domain))
        composed = prv.compose_heterogeneous(dprvs=discrete, num_self_compositions=steps)
    except RuntimeError as error:
        raise PrivacyConfigError(_advice(f"cannot discretise this mechanism ({error})")) from error
    if not np.all(np.isfinite(composed.pmf)):
        raise PrivacyConfigError(_advice("lost its precision"))
    return composed

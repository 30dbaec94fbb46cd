from __future__ import annotations

import pytest

from lightning_dp.accounting import GaussianEvent, LedgerEntry, PLDAccountant, PRVAccountant
from lightning_dp.errors import PrivacyConfigError

PLD, PRV = PLDAccountant(), PRVAccountant()


@pytest.mark.parametrize(
    "events",
    [
        [(1.0, 0.01, 1000)],
        [(2.0, 0.1, 100)],
        [(1.0, 0.3, 1)],
        [(1.0, 1.0, 3)],
        [(20.0, 0.5, 1000)],
        [(1.0, 0.01, 500), (2.0, 0.05, 200)],
    ],
)
def test_eps_and_delta_agree_with_loss_distributions_within_the_stated_errors(
    events: list[tuple[float, float, int]],
) -> None:
    entries = [LedgerEntry(GaussianEvent(sigma, q), steps) for sigma, q, steps in events]
    # PRV's upper end: 0.01 above the truth; PLD within 0.2 % above.
    assert PRV.epsilon(entries, 1e-5) == pytest.approx(PLD.epsilon(entries, 1e-5) + 0.01, abs=0.008)
    assert PRV.delta(entries, 1.0) == pytest.approx(PLD.delta(entries, 1.0 - 0.01), rel=0.02)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("event", [(0.05, 0.004, 1000), (1e-6, 0.5, 10**6), (0.3, 0.5, 10**5)])
def test_a_grid_too_large_is_refused_before_it_is_built(event: tuple[float, float, int]) -> None:
    """Opacus asked for 4.6 GiB, or took the process down, at such eps (opacus#601, #604)."""
    entries = [LedgerEntry(GaussianEvent(event[0], event[1]), event[2])]
    with pytest.raises(PrivacyConfigError, match="accountant='pld'"):
        PRV.epsilon(entries, 1e-5)
    with pytest.raises(PrivacyConfigError, match="accountant='pld'"):
        PRV.delta(entries, 1.0)

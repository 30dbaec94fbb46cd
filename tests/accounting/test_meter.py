from __future__ import annotations

from typing import Any

import pytest

from lightning_dp.accounting import EpsilonMeter, GaussianEvent, LedgerEntry, get_accountant

EVENT = GaussianEvent(0.8, 0.004)
SPENT = (LedgerEntry(GaussianEvent(1.0, 0.01), 500), LedgerEntry(GaussianEvent(20.0), 3))


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("spent", [(), SPENT], ids=["fresh", "resumed"])
def test_never_below_the_accountant_and_equal_at_the_planned_end(
    accountant: Any, spent: tuple[LedgerEntry, ...]
) -> None:
    meter, exact = EpsilonMeter(1e-5, accountant, spent), get_accountant(accountant)
    meter.prime(EVENT, 2000)
    shown = []
    for step in (1, 2, 100, 249, 250, 251, 500, 501, 1000, 1001, 1999, 2000, 2001, 2500):
        entries = (*spent, LedgerEntry(EVENT, step))
        shown.append(meter.epsilon(entries))
        assert shown[-1] >= exact.epsilon(entries, 1e-5) - 1e-9
        if step in (250, 500, 1000, 2000):
            assert shown[-1] == pytest.approx(exact.epsilon(entries, 1e-5), rel=1e-12)
    assert shown == sorted(shown)


def test_unprimed_it_is_the_renyi_bound() -> None:
    entries = (*SPENT, LedgerEntry(EVENT, 100))
    assert EpsilonMeter(1e-5).epsilon(entries) == pytest.approx(get_accountant("rdp").epsilon(entries, 1e-5), rel=1e-12)


def test_a_ledger_outside_the_plan_is_not_given_its_eps() -> None:
    meter = EpsilonMeter(1e-5)
    meter.prime(EVENT, 2000)
    planned = meter.epsilon((LedgerEntry(EVENT, 2000),))
    for other in (
        (LedgerEntry(EVENT, 2001),),
        (LedgerEntry(EVENT, 2000), LedgerEntry(EVENT, 1)),
        (LedgerEntry(EVENT, 10), LedgerEntry(GaussianEvent(0.4, 0.1), 100)),
        (LedgerEntry(EVENT, 1900), *SPENT),
    ):
        assert meter.epsilon(other) >= get_accountant("pld").epsilon(other, 1e-5) - 1e-9
        assert meter.epsilon(other) > planned


def test_the_ends() -> None:
    meter = EpsilonMeter(1e-5)
    meter.prime(GaussianEvent(0.0, 0.1), 10)
    assert meter.epsilon(()) == 0.0
    assert meter.epsilon((LedgerEntry(GaussianEvent(0.0, 0.1), 1),)) == float("inf")

from __future__ import annotations

import math

import pytest

from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant, privacy_spent
from lightning_dp.accounting.spent import rounded_up
from lightning_dp.errors import PrivacyConfigError

POISSON = LedgerEntry(GaussianEvent(1.0, 0.0043), 1000)
SHUFFLED = LedgerEntry(GaussianEvent(5.0, 1.0, "shuffle"), 10)


def test_the_sentence_says_everything() -> None:
    spent = privacy_spent([POISSON], 1e-5)
    text = str(spent)
    assert "\n" not in text
    for part in (
        rounded_up(spent.eps),
        "1e-05",
        "add or remove one",
        "Poisson sampling, q = 0.0043",
        "pld",
        "1000 steps",
    ):
        assert part in text
    assert "shuffled, accounted without amplification" in str(privacy_spent([SHUFFLED], 1e-5))
    both = str(privacy_spent([POISSON, SHUFFLED], 1e-5))
    assert "Poisson sampling" in both
    assert "shuffled" in both
    assert "1010 steps" in both
    assert "eps = inf" in str(privacy_spent([LedgerEntry(GaussianEvent(0.0), 1)], 1e-5))


def test_the_fields() -> None:
    spent = privacy_spent([POISSON, POISSON], 1e-5, "rdp")
    assert spent.eps == get_accountant("rdp").epsilon([POISSON, POISSON], 1e-5)
    assert (spent.noise_multiplier, spent.sample_rate, spent.steps) == (1.0, 0.0043, 2000)
    assert (spent.sampling, spent.accountant, spent.relation) == ("poisson", "rdp", "add_or_remove_one")
    assert len(spent.entries) == 1
    mixed = privacy_spent([POISSON, SHUFFLED], 1e-5)
    assert (mixed.noise_multiplier, mixed.sample_rate, mixed.sampling, mixed.steps) == (
        None,
        None,
        "mixed",
        1010,
    )
    nothing = privacy_spent([], 1e-5)
    assert (nothing.eps, nothing.steps, nothing.sampling) == (0.0, 0, "none")


def test_the_curve_behind_the_number() -> None:
    spent = privacy_spent([POISSON], 1e-5)
    assert float(spent.trade_off().tpr(1e-4)) <= math.exp(spent.eps) * 1e-4 + 1e-5


@pytest.mark.parametrize("eps", [1e-7, 0.0123456, 1.00001, 3.53949999, 9.99999, 99.9951, 123456.0, 1e9 + 1])
def test_a_printed_eps_isrounded_up(eps: float) -> None:
    assert eps <= float(rounded_up(eps)) <= eps * 1.0011


def test_an_impossible_delta_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="delta"):
        privacy_spent([POISSON], 0.0)

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    SensitivityIndex,
    equivalent_sensitivity_index,
    get_accountant,
)
from lightning_dp.accounting.renyi import ORDERS, rdp_step
from lightning_dp.errors import PrivacyConfigError

#: psi, AUC, advantage, balanced accuracy, TPR at FPR 1e-3, delta(1), eps(1e-5)
TABLE = [
    (0.25, 0.570158, 0.099476, 0.549738, 0.002254, 2.92427e-6, 0.926342),
    (0.5, 0.638163, 0.197413, 0.598706, 0.004796, 0.00682959, 1.993091),
    (1.0, 0.760250, 0.382925, 0.691462, 0.018298, 0.126937, 4.377178),
    (1.5, 0.855578, 0.546745, 0.773373, 0.055891, 0.320392, 7.051413),
    (2.0, 0.921350, 0.682689, 0.841345, 0.137805, 0.509862, 9.997256),
    (3.0, 0.983053, 0.866386, 0.933193, 0.464051, 0.787601, 16.675494),
    (5.0, 0.999797, 0.987581, 0.993790, 0.971918, 0.979852, 33.103732),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"psi={row[0]}")
def test_reference_table(row: tuple[float, ...]) -> None:
    psi, auc, advantage, balanced, tpr, delta, eps = row
    index = SensitivityIndex(psi)
    assert index.auc == pytest.approx(auc, abs=5.1e-7)
    assert index.advantage == pytest.approx(advantage, abs=5.1e-7)
    assert index.balanced_accuracy == pytest.approx(balanced, abs=5.1e-7)
    assert float(index.tpr(1e-3)) == pytest.approx(tpr, abs=5.1e-7)
    assert index.delta(1.0) == pytest.approx(delta, rel=4e-6, abs=0.0)
    assert index.eps(1e-5) == pytest.approx(eps, abs=5.1e-7)
    assert SensitivityIndex.from_auc(index.auc).psi == pytest.approx(psi, rel=1e-9)
    assert SensitivityIndex.from_eps_delta(index.eps(1e-5), 1e-5).psi == pytest.approx(psi, rel=1e-9)


@pytest.mark.parametrize(
    ("eps", "delta", "psi"),
    [(1, 1e-5, 0.268051), (2, 1e-5, 0.501552), (3, 1e-5, 0.719117), (8, 1e-5, 1.666031), (10, 1e-5, 2.000446)]
    + [(1, 1e-6, 0.236704)],
)
def test_reference_inverse(eps: float, delta: float, psi: float) -> None:
    assert SensitivityIndex.from_eps_delta(eps, delta).psi == pytest.approx(psi, abs=5.1e-7)


def test_composition_and_groups() -> None:
    three, four = SensitivityIndex(3.0), SensitivityIndex(4.0)
    assert three.compose(four).psi == pytest.approx(5.0)
    assert three.compose().psi == 3.0
    assert three.group(4).psi == 12.0
    np.testing.assert_allclose([three.rdp(a) for a in ORDERS], rdp_step(1.0 / 3.0, 1.0))


def test_the_far_tails_keep_their_digits() -> None:
    # Phi(-30 + 1), from the asymptotic series of the normal tail
    index = SensitivityIndex(1.0)
    fpr = 4.906713927148187e-198  # Phi(-30)
    x = 29.0
    tail = math.exp(-0.5 * x * x) / (x * math.sqrt(2 * math.pi)) * (1 - x**-2 + 3 * x**-4 - 15 * x**-6)
    assert float(index.tpr(fpr)) == pytest.approx(tail, rel=1e-6)
    assert 0.0 < index.delta(30.0) < 1e-190
    np.testing.assert_allclose(index.tpr([0.0, 1.0]), [0.0, 1.0])


def test_the_ends() -> None:
    none, all_ = SensitivityIndex(0.0), SensitivityIndex(math.inf)
    assert (none.auc, none.advantage, none.balanced_accuracy) == (0.5, 0.0, 0.5)
    assert (none.eps(1e-5), none.delta(0.0)) == (0.0, 0.0)
    assert (all_.auc, all_.advantage, all_.eps(1e-5), all_.delta(1.0), float(all_.tpr(0.0))) == (
        1,
        1,
        math.inf,
        1,
        1,
    )
    assert SensitivityIndex.from_auc(1.0).psi == math.inf


def test_impossible_values_are_refused() -> None:
    for bad in (-1.0, math.nan):
        with pytest.raises(PrivacyConfigError, match="psi"):
            SensitivityIndex(bad)
    with pytest.raises(PrivacyConfigError, match="auc"):
        SensitivityIndex.from_auc(0.4)
    with pytest.raises(PrivacyConfigError, match="group"):
        SensitivityIndex(1.0).group(0)
    with pytest.raises(PrivacyConfigError, match="rates"):
        SensitivityIndex(1.0).tpr(1.5)
    with pytest.raises(PrivacyConfigError, match="alpha"):
        SensitivityIndex(1.0).rdp(0.5)


def test_the_equivalent_index_has_the_same_eps_at_delta() -> None:
    entries = [LedgerEntry(GaussianEvent(1.0, 0.01), 1000)]
    eps = get_accountant("pld").epsilon(entries, 1e-5)
    assert equivalent_sensitivity_index(entries, 1e-5).eps(1e-5) == pytest.approx(eps, rel=1e-9)
    assert equivalent_sensitivity_index([LedgerEntry(GaussianEvent(2.0), 4)], 1e-5).psi == pytest.approx(1.0, rel=1e-9)
    assert equivalent_sensitivity_index([], 1e-5).psi == 0.0
    assert equivalent_sensitivity_index([LedgerEntry(GaussianEvent(0.0), 4)], 1e-5).psi == math.inf

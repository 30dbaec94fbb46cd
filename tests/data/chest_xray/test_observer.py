from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from lightning_dp.data.chest_xray import FaintFindings, ideal_accuracy, parity_differences
from lightning_dp.errors import PrivacyConfigError


@pytest.mark.parametrize(("d", "p"), [(1.0, 0.5), (2.5, 0.2), (0.7, 0.6)])
def test_without_faint_findings_it_is_the_textbook_observer(d: float, p: float) -> None:
    """The threshold on s is d/2 + log((1-p)/p)/d."""
    absent, present = ideal_accuracy(np.array(d), np.array(p), np.array(0.0), 0.3)
    threshold = d / 2 + math.log((1 - p) / p) / d
    assert absent == pytest.approx(norm.cdf(threshold), abs=1e-9)
    assert present == pytest.approx(norm.sf(threshold - d), abs=1e-9)


@pytest.mark.parametrize(
    ("d", "p", "share", "contrast"), [(3.0, 0.3, 0.6, 0.0), (4.0, 0.4, 0.5, 0.4), (2.0, 0.9, 0.9, 0.2)]
)
def test_no_threshold_does_better_and_simulation_agrees(d: float, p: float, share: float, contrast: float) -> None:
    absent, present = (float(x) for x in ideal_accuracy(np.array(d), np.array(p), np.array(share), contrast))
    best = (1 - p) * absent + p * present
    rng, n = np.random.default_rng(0), 200_000
    there = rng.random(n) < p
    mean = d * there * np.where(rng.random(n) < share, contrast, 1.0)
    s = mean + rng.standard_normal(n)
    slack = 4 * 0.5 / math.sqrt(n)
    for threshold in np.linspace(-3, 7, 101):
        assert ((s > threshold) == there).mean() < best + slack
    closest = max(((s > threshold) == there).mean() for threshold in np.linspace(-12, 7, 1901))
    assert abs(closest - best) < slack + 0.002  # the best of many thresholds is a little lucky


def test_what_shows_is_found_and_what_does_not_is_missed() -> None:
    absent, present = ideal_accuracy(np.array([30.0]), np.array([0.3]), np.array([0.6]), 0.0)
    assert absent[0] == pytest.approx(1.0, abs=1e-4)
    assert present[0] == pytest.approx(0.4, abs=1e-4)


def test_a_whole_group_of_invisible_findings_is_guessed_by_frequency() -> None:
    for p, expected in ((0.3, (1.0, 0.0)), (0.7, (0.0, 1.0))):
        absent, present = ideal_accuracy(np.array(5.0), np.array(p), np.array(1.0), 0.0)
        assert (float(absent), float(present)) == pytest.approx(expected, abs=1e-12)


def test_parity_on_a_hand_made_table() -> None:
    accuracy = np.array([1.0, 0.0, 1.0, 1.0, 0.5])
    groups = np.array([0, 0, 1, 1, 2])
    assert parity_differences(accuracy, groups, 4)[:3] == pytest.approx([0.5 - 2.5 / 3, 1.0 - 1.5 / 3, 0.5 - 3 / 4])
    assert math.isnan(parity_differences(accuracy, groups, 4)[3])
    two = parity_differences(accuracy, np.array([0, 1, 1, 0, 1]), 2)
    assert two[0] == -two[1]


@pytest.mark.parametrize("wrong", [{"share": 1.1}, {"contrast": -0.1}, {"share": math.nan}])
def test_shares_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PrivacyConfigError, match="from 0 to 1"):
        FaintFindings(**wrong)  # type: ignore[arg-type]

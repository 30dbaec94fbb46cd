"""RECIST 1.1 at its boundaries."""

from __future__ import annotations

import pytest

from lightning_dp.data.recist import DISEASE_CONTROL, recist, responders
from lightning_dp.errors import PrivacyConfigError


@pytest.mark.parametrize(
    "baseline, nadir, current, category",
    [
        (100, 100, 0, "CR"),
        (100, 100, 70.1, "SD"),  # down by 29.9 %
        (100, 100, 70, "PR"),  # by 30 %
        (0.7, 0.7, 0.49, "PR"),  # by 30 %, of numbers that binary cannot hold
        (100, 50, 59.95, "PR"),  # up by 19.9 % and 9.95 mm: not yet progressive
        (100, 50, 60, "PD"),  # by 20 % and 10 mm, though still 40 % below baseline
        (24.5, 24.5, 29.4, "SD"),  # by 20 %, but 4.9 mm
        (25, 25, 30, "PD"),  # by 20 % and 5 mm
        (20, 20, 24.9, "SD"),  # by 24.5 %, 4.9 mm
        (20, 20, 25, "PD"),  # by 25 %, 5 mm
        (100, 100, 119.9, "SD"),  # by 19.9 %, 19.9 mm
        (100, 100, 120, "PD"),
        (100, 0, 4.9, "PR"),  # grown again from nothing, by 4.9 mm
        (100, 0, 5, "PD"),
        (100, 0, 0, "CR"),
        (100, 100, 100, "SD"),
    ],
)
def test_boundaries(baseline: float, nadir: float, current: float, category: str) -> None:
    assert recist(baseline, nadir, current) == category


def test_whole_cohorts_and_definitions_of_a_responder() -> None:
    categories = recist(100, [100, 100, 100, 50], [0, 70, 90, 60])
    assert categories.tolist() == ["CR", "PR", "SD", "PD"]
    assert responders(categories).tolist() == [1, 1, 0, 0]
    assert responders(categories, DISEASE_CONTROL).tolist() == [1, 1, 1, 0]
    assert responders(categories, ["CR"]).tolist() == [1, 0, 0, 0]


def test_what_is_no_measurement_is_refused() -> None:
    for arguments in ((100, 100, -1), (100, float("nan"), 5), (float("inf"), 1, 1)):
        with pytest.raises(PrivacyConfigError, match="millimetres"):
            recist(*arguments)
    with pytest.raises(PrivacyConfigError, match="measurable"):
        recist(0, 0, 1)
    with pytest.raises(PrivacyConfigError, match="smallest sum so far"):
        recist(50, 60, 60)
    with pytest.raises(PrivacyConfigError, match="CR, PR, SD, PD"):
        responders(["responder"])
    with pytest.raises(PrivacyConfigError, match="pr"):
        responders(["PR"], ["pr"])  # type: ignore[list-item]

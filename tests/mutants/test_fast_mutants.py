"""The quickest faults of the mutation check, in the ordinary suite; `tests/mutants/run.py` has them all.

That their tests are green without a fault is what the rest of the suite shows.
"""

from __future__ import annotations

import pytest

from tests.mutants.fault import Mutant
from tests.mutants.mutants import MUTANTS
from tests.mutants.run import ROOT, check, misplaced

FAST = [mutant for mutant in MUTANTS if mutant.fast]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_can_still_be_planted(mutant: Mutant) -> None:
    """Code moves on; a fault whose place is gone would be forgotten in silence."""
    assert not misplaced(mutant)
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_there_is_a_fault_of_every_kind() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert len(FAST) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("mutant", FAST, ids=lambda mutant: mutant.name)
def test_the_fault_turns_a_test_red(mutant: Mutant) -> None:
    assert check(mutant) == "caught"

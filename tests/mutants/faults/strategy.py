"""Faults of the strategies."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BUDGET, PLANNED, UNITS

__all__ = ("STRATEGY_FAULTS",)

STRATEGY_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "a stand-in has weight one", "lightning_dp/strategies/step.py",
        "return None if draw.real[self._chunk] else torch.zeros(self.samples.num_units)", "return None",
        "tests/strategies/test_empty_draws.py::test_a_stand_in_contributes_exactly_nothing",
    ),
    mutant(
        "every sample of a patient is clipped by itself", "lightning_dp/strategies/step.py",
        "if rows is not None:", "if False:",
        "tests/strategies/test_units.py::test_each_patient_is_clipped_as_a_whole",
        "tests/strategies/test_units.py::test_a_whole_patient_changes_the_sum_by_at_most_c",
    ),
    mutant(
        "others' samples scale a unit", "lightning_dp/gradients/units.py",
        "total / self.terms.double()", "1.0 / self.terms.double()",
        f"{UNITS}::test_a_loss_over_samples_gives_each_unit_the_mean_of_its_own",
    ),
    mutant(
        "the rate is that of samples and not of units", PLANNED,
        "n = len(dataloader.dataset) if self._rows is None else self._rows.num_units", "n = len(dataloader.dataset)",
        "tests/strategies/test_units.py::test_the_ledger_and_every_report_count_patients",
    ),
    mutant(
        "spending on samples passes for spending on patients", BUDGET,
        "if unit != self.unit and theirs.entries:", "if False:",
        "tests/strategies/test_units.py::test_spending_on_other_units_is_not_added_up",
    ),
    mutant(
        "the sampling key goes into the checkpoint", PLANNED,
        '"position": self._position, "budget"', '"position": self._position, "key": self._key, "budget"',
        "tests/strategies/test_resume.py::test_the_checkpoint_is_plain_python_and_holds_no_secret",
    ),
    mutant(
        "batch normalisation is accepted", "lightning_dp/strategies/refusals/module.py",
        "found = modules_of(s, _BatchNorm)", "found: list[str] = []",
        "tests/strategies/test_refusals.py::test_is_refused_before_anything_happens",
    ),
    mutant(
        "the self-check does not look for coupled samples", "lightning_dp/strategies/selfcheck.py",
        "        check.units_are_independent()\n", "",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    mutant(
        "the self-check does not look at buffers", "lightning_dp/strategies/selfcheck.py",
        "        check.state_is_not_written()\n", "",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    mutant(
        "the self-check looks at evaluation mode alone", "lightning_dp/strategies/undropped.py",
        "    running: list[ExitStack] = []\n", "    running: list[ExitStack] = []\n    root.eval()\n",
        "tests/strategies/test_selfcheck_explains.py::test_a_coupling_of_training_mode_is_seen_beside_dropout",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    mutant(
        "a coupling that has an explanation passes", "lightning_dp/strategies/selfcheck.py",
        "            raise PrivacyError(self._explained(found, one, unit, some, others))\n",
        "            self._explained(found, one, unit, some, others)\n",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
)  # fmt: skip  # fmt: skip

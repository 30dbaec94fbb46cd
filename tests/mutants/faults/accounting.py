"""Faults of accounting."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BUDGET, LEDGER, STRATEGY

__all__ = ("ACCOUNTING_FAULTS",)

ACCOUNTING_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "a restored ledger overwrites", LEDGER,
        "mine[event] = max(mine.get(event, 0), steps)", "mine[event] = steps",
        "tests/accounting/test_ledger.py::test_an_old_checkpoint_does_not_erase_later_steps", fast=True,
    ),
    mutant(
        "the ledger starts anew on resume", LEDGER,
        "        segments = _parse(state)\n", "        segments = _parse(state)\n        self._segments.clear()\n",
        "tests/accounting/test_ledger.py::test_two_runs_resumed_from_one_checkpoint_add_up",
        "tests/strategies/test_resume.py::test_an_older_checkpoint_never_lowers_the_ledger",
    ),
    mutant(
        "steps dropped in Renyi composition", "lightning_dp/accounting/renyi.py",
        "total = total + steps * rdp_step(", "total = total + rdp_step(",
        "tests/accounting/test_renyi.py::test_epsilon_and_delta_agree_with_dp_accounting",
    ),
    mutant(
        "the direction of removing is dropped", "lightning_dp/accounting/pld.py",
        "return max(0.0, *(float(pmf.get_epsilon_for_delta(usable)) for pmf in (self.remove, self.add)))",
        "return max(0.0, float(self.add.get_epsilon_for_delta(usable)))",
        "tests/accounting/test_accountants.py::test_both_directions_are_in_the_answer",
        "tests/accounting/test_accountants.py::test_eps_and_delta_agree_with_dp_accounting_from_above",
    ),
    mutant(
        "charged after the step", STRATEGY,
        "        event = self._budget.charge(self._step.number)  # before the gradient exists: a crash can only over-count\n"
        "        self._running_engine.noise_multiplier = event.noise_multiplier  # what is charged is what is added\n\n"
        "        def private_closure() -> Any:\n"
        "            with self._at_point():\n                loss = closure()\n"
        "                self._run_further_batches(optimizer)\n            self._step.end()\n"
        "            self._write_gradients()\n",
        "        def private_closure() -> Any:\n            with self._at_point():\n                loss = closure()\n"
        "                self._run_further_batches(optimizer)\n            number = self._step.number\n"
        "            self._step.end()\n            self._write_gradients()\n            self._budget.charge(number)\n",
        "tests/strategies/test_budget.py::test_a_step_is_charged_before_its_gradient_exists",
    ),
    mutant(
        "a schedule's noise is charged and not added", STRATEGY,
        "        self._running_engine.noise_multiplier = event.noise_multiplier  # what is charged is what is added\n", "",
        "tests/strategies/test_schedules.py::test_each_step_is_charged_with_its_own_noise",
    ),
    mutant(
        "a schedule's steps are charged alike", BUDGET,
        "        event = self.event_of(step)\n", "        event = self.event\n",
        "tests/strategies/test_schedules.py::test_a_scheduled_run_is_calibrated_to_the_budget",
    ),
    mutant(
        "calibration forgets the schedule", BUDGET,
        "factors=None if self.schedule is None else self._factors(start, max(1, planned)),", "factors=None,",
        "tests/strategies/test_schedules.py::test_a_scheduled_run_is_calibrated_to_the_budget",
    ),
    mutant(
        "skipped steps pay for dearer ones", BUDGET,
        "return step < self._covered", "return self._remaining() > 0",
        "tests/strategies/test_schedules.py::test_steps_that_were_skipped_do_not_pay_for_dearer_ones",
    ),
    mutant(
        "not charged at all", BUDGET, "            self.ledger.charge(event)\n", "",
        "tests/strategies/test_budget.py::test_the_planned_run_spends_just_the_budget[rdp-3.0]",
    ),
    mutant(
        "the budget never ends", BUDGET,
        "if self._target is None or not self._costs(step):", "if True:",
        "tests/strategies/test_budget.py::test_a_second_fit_stops_at_once_and_says_so",
        "tests/strategies/test_budget.py::test_a_resumed_run_stops_before_it_overshoots",
    ),
)  # fmt: skip  # fmt: skip

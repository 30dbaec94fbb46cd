"""Faults of accounting."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BUDGET, LEDGER, STRATEGY

__all__ = ("ACCOUNTING_FAULTS",)

ALLOCATION = "lightning_dp/accounting/allocation.py"

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
    mutant(
        "a pass is calibrated as if nothing amplified it", "lightning_dp/accounting/calibration.py",
        "and tail == 0.0 and bins == 1 and", "and tail == 0.0 and",
        "tests/accounting/test_allocation.py::test_noise_is_calibrated_to_passes",
    ),
    mutant(
        "masses move to the lower point of their cell", ALLOCATION,
        "out[begin : begin + len(masses)] += (1.0 - up) * masses\n"
        "    out[begin + 1 : begin + 1 + len(masses)] += up * masses",
        "out[begin : begin + len(masses)] += masses",
        "tests/accounting/test_allocation.py::test_moments_are_those_of_the_mean_from_above",
        "tests/accounting/test_allocation.py::test_two_bins_are_bounded_from_above_and_closely",
    ),
    mutant(
        "the widths of means are halved", ALLOCATION,
        "_pairs(out, room, [(p, q), (q, p)], 0.5, step)", "_pairs(out, room, [(p, q), (q, p)], 0.75, step)",
        "tests/accounting/test_allocation.py::test_moments_are_those_of_the_mean_from_above",
    ),
    mutant(
        "what grids leave out is forgotten", ALLOCATION,
        "beyond = one.beyond + other.beyond", "beyond = 0.0",
        "tests/accounting/test_allocation.py::test_what_grids_leave_out_adds_up",
    ),
    mutant(
        "adding is taken for removing", ALLOCATION,
        "return self._mean.removing(eps) if remove else self._mean.adding(eps)", "return self._mean.removing(eps)",
        "tests/accounting/test_allocation.py::test_two_bins_are_bounded_from_above_and_closely",
        "tests/accounting/test_allocation.py::test_a_simulation_of_the_passes_agrees",
    ),
    mutant(
        "passes are not composed", "lightning_dp/accounting/accountants.py",
        "parts += [(BallsInBins(sigma, bins), times) for", "parts += [(BallsInBins(sigma, bins), 1) for",
        "tests/accounting/test_allocation.py::test_a_simulation_of_the_passes_agrees",
    ),
)  # fmt: skip  # fmt: skip

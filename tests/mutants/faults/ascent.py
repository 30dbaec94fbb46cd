"""Faults of bias-aware minimisation."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import CONTRIBUTIONS

__all__ = ("ASCENT_FAULTS",)

PASSES = "tests/gradients/ascent/test_passes.py"
ASCENT = "lightning_dp/gradients/ascent"
BAM = "lightning_dp/strategies/bam.py"
BAM_TESTS = "tests/strategies/test_bam.py"

ASCENT_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "the plain gradient is clipped, and the second one added unclipped", CONTRIBUTIONS,
        "    parts = [(share, c) for c in second if share] + [(1 - share, c) for c in first if share < 1]\n",
        "    parts = [(1e3 * share, c) for c in second if share] + [(1 - share, c) for c in first if share < 1]\n",
        f"{PASSES}::test_matches_a_plain_loop_over_units", f"{PASSES}::test_the_quadratic_has_its_closed_form",
    ),
    mutant(
        "the bound is that of the plain gradient", f"{ASCENT}/passes.py",
        "squares = found.repaired(found.squared_norms())", "squares = self.plain()[0].get(parameter, found.squared_norms())",
        f"{PASSES}::test_matches_a_plain_loop_over_units",
        f"{PASSES}::test_one_unit_moves_the_sum_by_at_most_the_bound",
    ),
    mutant(
        "all units move along their common gradient", f"{ASCENT}/directions.py",
        "return tensor * self.steps", "return tensor.mean(0, keepdim=True) * self.steps",
        f"{PASSES}::test_one_unit_moves_the_sum_by_at_most_the_bound",
        f"{PASSES}::test_matches_a_plain_loop_over_units",
    ),
    mutant(
        "the ascent is not of unit length", f"{ASCENT}/directions.py",
        "radius / torch.where(moved, norms, norms.new_ones(()))", "norms.new_tensor(radius)",
        f"{PASSES}::test_the_quadratic_has_its_closed_form",
    ),
    mutant(
        "a unit whose first gradient is not finite counts by its second", f"{ASCENT}/passes.py",
        'norms[parameter] = torch.where(finite, squares, squares.new_full((), float("inf")))', "norms[parameter] = squares",
        f"{PASSES}::test_a_unit_whose_first_gradient_alone_is_not_finite_is_dropped",
    ),
    mutant(
        "the second pass draws other random numbers", BAM,
        "with first.randomness.replayed(), _compat", "with _compat",
        f"{BAM_TESTS}::test_both_passes_draw_the_same_numbers_and_the_second_logs_nothing",
    ),
    mutant(
        "attention drops others in the second pass", f"{ASCENT}/attention.py",
        "with nullcontext() if random_state is None else random_state.replayed():", "with nullcontext():",
        f"{PASSES}::test_both_passes_drop_the_same",
    ),
    mutant(
        "a batch that was changed in place is passed over again", "lightning_dp/strategies/ascentcheck.py",
        "if versions(batch) != before:", "if False:",
        f"{BAM_TESTS}::test_a_batch_changed_in_place_is_seen_without_the_self_check",
    ),
    mutant(
        "the self-check does not look at mixed gradients", "lightning_dp/strategies/selfcheck.py",
        "        check.mechanism_is_right()\n", "",
        f"{BAM_TESTS}::test_a_layer_moved_wrongly_is_seen_before_the_first_step",
    ),
    mutant(
        "the self-check does not look whether mixed gradients keep apart", "lightning_dp/strategies/ascentcheck.py",
        "        self.units_are_independent()\n", "",
        f"{BAM_TESTS}::test_units_that_share_a_point_are_seen_before_the_first_step",
    ),
    mutant(
        "the parameters stay at the moved point", "lightning_dp/strategies/previous.py",
        "                    parameter.copy_(value)\n", "                    pass\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    mutant(
        "the parameters are moved back by arithmetic", "lightning_dp/strategies/previous.py",
        "                for parameter, value in before:\n                    parameter.copy_(value)\n",
        "                for parameter, gradient in self._released:\n"
        "                    parameter.sub_(gradient, alpha=self.radius / squares**0.5)\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    mutant(
        "the ascent follows the clipped sum before its noise", BAM,
        "        super()._write_gradients()\n        if self._previous is not None:\n"
        "            self._previous.remember(engine.trainable())\n",
        "        if self._previous is not None:\n"
        "            for p, g in zip(engine.trainable(), engine.clipped_sum(), strict=True):\n                p.grad = g\n"
        "            self._previous.remember(engine.trainable())\n        super()._write_gradients()\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    mutant(
        "the measured bias is logged without a word", BAM,
        "        if self._logs_bias:\n            self._running_engine.probe = BiasProbe()\n            rank_zero_warn(",
        "        if self._logs_bias:\n            self._running_engine.probe = BiasProbe()\n            str(",
        f"{BAM_TESTS}::test_the_accountant_reports_it_and_the_bias_is_named_as_uncovered",
    ),
)  # fmt: skip  # fmt: skip

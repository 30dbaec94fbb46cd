"""Faults of what is frozen and unfrozen under way."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("FREEZING_FAULTS",)

TESTS = "tests/strategies/test_freezing.py"
CHECKED = "lightning_dp/strategies/checked.py"
FREEZING = "lightning_dp/strategies/freezing.py"

FREEZING_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "what is unfrozen under way is not checked", CHECKED,
        "if self._manual is not None or not self._freezing.is_checked(self._module):", "if self._manual is not None:",
        f"{TESTS}::test_what_nobody_announced_is_checked_before_its_first_step",
    ),
    mutant(
        "what a callback will unfreeze is not checked before it spends", CHECKED,
        "            self._check(thawed)\n", "",
        f"{TESTS}::test_what_a_callback_will_unfreeze_is_checked_before_anything_is_spent",
    ),
    mutant(
        "the copy that is checked stays frozen", "lightning_dp/strategies/selfcheck.py",
        "twin.get_parameter(name).requires_grad_(True)", "pass",
        f"{TESTS}::test_what_a_callback_will_unfreeze_is_checked_before_anything_is_spent",
    ),
    mutant(
        "foreign parameters are looked for at the start only", "lightning_dp/strategies/base.py",
        "if self._freezing.holds_others(self.optimizers):", "if False:",
        f"{TESTS}::test_a_parameter_from_outside_the_module_is_refused_whenever_it_comes",
    ),
    mutant(
        "optimizers' new groups are not noticed", FREEZING,
        "self._state = self._state, (required, _held(optimizers))", "self._state = self._state, (required, ())",
        f"{TESTS}::test_manual_optimisation_follows_a_new_group",
        f"{TESTS}::test_a_parameter_from_outside_the_module_is_refused_whenever_it_comes",
    ),
    mutant(
        "a resumed run freezes again", FREEZING,
        "module.get_parameter(name).requires_grad_(name in saved)", "pass",
        f"{TESTS}::test_a_resumed_run_is_the_uninterrupted_one",
    ),
    mutant(
        "only what is unfrozen later is clipped", "lightning_dp/gradients/engine.py",
        "squares = group_sums([(group[parameter], norm) for parameter, norm in norms.items()], num_groups)",
        "squares = group_sums([(group[p], n) for p, n in list(norms.items())[:2]], num_groups)",
        f"{TESTS}::test_the_clipped_sum_before_and_after_is_that_of_a_plain_loop",
    ),
)  # fmt: skip

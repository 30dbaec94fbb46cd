"""Faults of the monitors."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("MONITOR_FAULTS",)

ENSEMBLE = "lightning_dp/callbacks/ensemble_budget.py"
MULTIPLICITY = "tests/callbacks/test_multiplicity_monitor.py"
MEMBERS = "lightning_dp/callbacks/members.py"
MONITOR = "lightning_dp/callbacks/monitor.py"
MONITORS = "tests/callbacks/test_monitors.py"

MONITOR_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "the budgets of an ensemble's members are not added", ENSEMBLE,
        "entries = Spending.merged(*known).entries", "entries = Spending.merged(known[0]).entries",
        f"{MULTIPLICITY}::test_trained_members_add_their_budgets_up",
    ),
    mutant(
        "what members have in common is counted as one's own", ENSEMBLE,
        "            if seen & one.segments:", "            if not one.segments:",
        f"{MULTIPLICITY}::test_a_common_beginning_is_counted_once",
    ),
    mutant(
        "a record that moves from one member's data to another's concerns one", ENSEMBLE,
        "        if relation_of(entries) != RELATION:", "        if not entries:",
        f"{MULTIPLICITY}::test_relations_do_not_add_up_and_disjoint_data_need_add_or_remove_one",
    ),
    mutant(
        "a member without privacy is forgotten", ENSEMBLE,
        "    if len(known) < len(spendings):", "    if not known:",
        f"{MULTIPLICITY}::test_a_member_without_privacy_leaves_no_guarantee",
    ),
    mutant(
        "an empty ledger is taken for eps = 0", ENSEMBLE,
        "        if not strategy.ledger.steps:", "        if strategy is None:",
        f"{MULTIPLICITY}::test_posterior_samples_cost_what_one_costs",
    ),
    mutant(
        "budgets are quoted at the largest delta", ENSEMBLE,
        "min(one.delta for one in known)", "max(one.delta for one in known)",
        f"{MULTIPLICITY}::test_trained_members_add_their_budgets_up",
    ),
    mutant(
        "the tested weights are left behind by the members", MEMBERS,
        "        module.load_state_dict(own, strict=False)\n", "",
        f"{MULTIPLICITY}::test_result_is_that_of_modules_of_their_own",
    ),
    mutant(
        "a group without a value is dropped", MONITOR,
        "computed.items() if self._is_logged(name)", "computed.items() if self._is_logged(name) and value == value",
        f"{MONITORS}::test_a_group_never_seen_and_one_class_only_stay_with_their_reason",
    ),
    mutant(
        "numbers without a value that are not logged are passed over", MONITOR,
        "in computed.items() if math.isnan(value)", "in named.items() if math.isnan(value)",
        f"{MONITORS}::test_a_number_that_is_computed_and_not_logged_is_missed_aloud_too",
    ),
    mutant(
        "why a group has no value is not said", MONITOR,
        'if item.get("reason") and item.get("value", 0) is None:', 'if item.get("reason") == "":',
        f"{MONITORS}::test_a_group_never_seen_and_one_class_only_stay_with_their_reason",
    ),
    mutant(
        "the last samples of a stage are not counted", MONITOR,
        "        self._flush(metric)\n        counts =", "        counts =",
        f"{MONITORS}::test_results_are_those_of_a_plain_loop",
    ),
    mutant(
        "repeated samples count twice", MONITOR,
        "return found.first(max(0, own - start))", "return found",
        "tests/callbacks/test_ranks.py::test_two_ranks_say_what_one_says",
    ),
)  # fmt: skip  # fmt: skip

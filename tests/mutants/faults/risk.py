"""Faults of risk."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BUDGET

__all__ = ("RISK_FAULTS",)

WORST_CASE = "tests/accounting/risk/test_reconstruction.py"
ROBUSTNESS = "lightning_dp/accounting/risk/reconstruction.py"
TARGETS = "lightning_dp/accounting/targets.py"
RISK_RUNS = "tests/strategies/test_risk_budget.py"

RISK_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "the trade-off curve is read in the wrong direction", "lightning_dp/accounting/pld.py",
        "return _least(self.delta_remove if remove else self.delta_add, level)",
        "return _least(self.delta_add if remove else self.delta_remove, level)",
        f"{WORST_CASE}::test_the_papers_direction_has_the_run_without_the_sample_as_null",
        f"{WORST_CASE}::test_composed_subsampled_table",
    ),
    mutant(
        "the better direction counts", ROBUSTNESS,
        "side: Side = max(found,", "side: Side = min(found,",
        f"{WORST_CASE}::test_the_papers_direction_has_the_run_without_the_sample_as_null",
    ),
    mutant(
        "a bound above a line is taken for one below", "lightning_dp/accounting/pld.py",
        "        return delta(eps) + math.exp(eps) * level\n", "        return delta(eps) + eps * level\n",
        f"{WORST_CASE}::test_composed_subsampled_table",
    ),
    mutant(
        "cut draws cost no risk", ROBUSTNESS,
        "min(1.0, composition.power(kappa, remove) + failure(entries))", "min(1.0, composition.power(kappa, remove))",
        f"{WORST_CASE}::test_cut_draws_are_added",
    ),
    mutant(
        "kappa of a guess among n is smaller than it is", "lightning_dp/accounting/risk/closed_forms.py",
        "return 1.0 / dataset_size", "return 0.1 / dataset_size",
        "tests/accounting/risk/test_closed_forms.py::test_kappa_of",
        "tests/accounting/test_targets.py::test_kappa_is_filled_in",
    ),
    mutant(
        "the blind guess comes on top of gamma", TARGETS,
        "        return self.gamma - self._kappa\n", "        return self.gamma\n",
        "tests/accounting/test_targets.py::test_the_calibrated_number_is_the_reported_one",
    ),
    mutant(
        "noise makes up for participation that it does not hide", "lightning_dp/accounting/participation.py",
        "    remove = gains[0] + np.sum(beyond[:-1] * np.maximum(np.diff(gains), 0.0)) + beyond[-1]\n",
        "    remove = gains[0]\n",
        f"{WORST_CASE}::test_the_limits_of_noise",
    ),
    mutant(
        "a risk is calibrated to and not enforced", BUDGET,
        "if self._target is None or not self._costs(step):", "if self.eps is None or not self._costs(step):",
        f"{RISK_RUNS}::test_a_longer_plan_ends_with_the_risk",
    ),
    mutant(
        "noise calibrated to another risk is taken over", BUDGET,
        'same = state["eps"] == self.eps and state.get("risk") == (None if self.risk is None else str(self.risk))',
        'same = state["eps"] == self.eps',
        f"{RISK_RUNS}::test_a_resumed_run_goes_on_with_what_is_left",
    ),
)  # fmt: skip  # fmt: skip

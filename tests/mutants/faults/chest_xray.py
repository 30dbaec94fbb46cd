"""Faults of the simulated chest X-rays: identities across splits, and gaps of the wrong group or sign."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("CHEST_XRAY_FAULTS",)

MODULE = "lightning_dp/data/chest_xray/module.py"
TESTS = "tests/data/chest_xray/test_module.py::"

CHEST_XRAY_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "patients in two parts", MODULE,
        "        start += sizes[part]\n", "",
        f"{TESTS}test_no_patient_and_no_mask_is_in_two_parts",
    ),
    mutant(
        "lung masks in two parts", MODULE,
        "own = order[round(ends[number]) : round(ends[number + 1])]", "own = order",
        f"{TESTS}test_no_patient_and_no_mask_is_in_two_parts",
    ),
    mutant(
        "a picture as the unit, not its patient", MODULE,
        '"unit_id": patient,', '"unit_id": np.arange(len(patient)),',
        f"{TESTS}test_no_patient_and_no_mask_is_in_two_parts",
    ),
    mutant(
        "the other group is treated unfairly", "lightning_dp/data/chest_xray/population.py",
        "column == ATTRIBUTES[faint.attribute]", "column != ATTRIBUTES[faint.attribute]",
        f"{TESTS}test_findings_of_one_group_are_faint_as_often_as_said",
    ),
    mutant(
        "planted gap with the sign turned", "lightning_dp/data/chest_xray/observer.py",
        "found.append(total / size - (float(sums.sum()) - total) / others if",
        "found.append((float(sums.sum()) - total) / others - total / size if",
        f"{TESTS}test_the_planted_parity_is_the_simulated_one",
    ),
    mutant(
        "true gap on pictures with the masks of training", MODULE,
        'np.unique(self.arrays()["test/mask"])', 'np.unique(self.arrays()["train/mask"])',
        "tests/data/chest_xray/test_population.py::test_masks_are_those_of_the_test_part",
    ),
    mutant(
        "the population keeps the unfairness when it is not wanted", MODULE,
        "self.unfairness if planted else None", "self.unfairness",
        "tests/data/chest_xray/test_population.py::test_with_and_without_the_unfairness_all_else_is_the_same",
    ),
    mutant(
        "a group's gap to the others with the sign turned", "lightning_dp/metrics/functional/gaps.py",
        "value = rates.values[g] - (hits.sum() - hits[g]) / others",
        "value = (hits.sum() - hits[g]) / others - rates.values[g]",
        "tests/metrics/test_fairness.py::test_a_hand_table",
    ),
)  # fmt: skip

"""Faults of segmentation."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("SEGMENTATION_FAULTS",)

SEGMENTATION_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "Dice is summed over the batch", "lightning_dp/models/losses.py",
        "shared = (probabilities * masks).sum(2)",
        "shared = (probabilities * masks).sum((0, 2)) + 0 * probabilities.sum(2)",
        "tests/models/test_losses.py::test_a_samples_loss_is_its_own",
    ),
    mutant(
        "every slice is a patient", "lightning_dp/data/abdomen/module.py",
        "owners = np.repeat(owners, self.shape[0])", "owners = np.arange(len(owners) * self.shape[0])",
        "tests/data/test_abdomen.py::test_slices_of_a_patient_are_theirs",
    ),
    mutant(
        "two cohorts have the same patients", "lightning_dp/data/abdomen/module.py",
        "first = cohort * COHORT_SIZE", "first = 0",
        "tests/data/test_abdomen.py::test_no_patient_is_in_two_parts_or_cohorts",
    ),
    mutant(
        "a patient listed twice is two units", "lightning_dp/data/decathlon.py",
        "if len({image.resolve() for image, _ in cases}) < len(cases):", "if False:",
        "tests/data/test_decathlon.py::test_a_patient_listed_twice_is_refused",
    ),
    mutant(
        "masks of classes that the network does not know train it", "lightning_dp/models/losses.py",
        "if not 0 <= low <= high < classes:", "if False:",
        "tests/models/test_losses.py::test_classes_that_the_logits_do_not_know_are_refused",
    ),
)  # fmt: skip  # fmt: skip

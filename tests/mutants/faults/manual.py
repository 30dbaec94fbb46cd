"""Faults of manual optimisation."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("MANUAL_FAULTS",)

MANUAL = "lightning_dp/strategies/manual.py"
BY_HAND = "tests/strategies/test_manual.py"

MANUAL_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "optimizers of one draw are noised as if each were alone", MANUAL,
        "return math.sqrt(len(self.private))", "return 1.0",
        f"{BY_HAND}::test_optimizers_share_the_event_of_their_draw",
    ),
    mutant(
        "several backward passes for one step", MANUAL, "if self._pending is not None:", "if False:",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    mutant(
        "several releases of one optimizer on one draw", MANUAL,
        "            self._released.append(optimizer)\n", "",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    mutant(
        "steps round the strategy", MANUAL, "if self._stepping is not optimizer:", "if False:",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    mutant(
        "backward passes round the strategy", MANUAL, "            if not self._passing:\n", "            if False:\n",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    mutant(
        "post-processing is not compared over batches", "lightning_dp/strategies/manualcheck.py",
        "if not error <= SAME:", "if False:",
        f"{BY_HAND}::test_is_stopped_before_the_first_step",
    ),
    mutant(
        "a passage through the discriminator is noised for the generator's sake", MANUAL,
        "        if reaches(loss, self.public_parameters):\n", "        if False:\n",
        f"{BY_HAND}::test_the_discriminator_is_clipped_per_sample_and_the_generator_is_not",
    ),
)  # fmt: skip  # fmt: skip

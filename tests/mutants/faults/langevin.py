"""Faults of Langevin dynamics."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BUDGET

__all__ = ("LANGEVIN_FAULTS",)

CHAIN_TESTS = "tests/strategies/test_langevin.py"
CHAIN = "lightning_dp/strategies/langevin.py"

LANGEVIN_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "the temperature is twice what it is", "lightning_dp/accounting/temperature.py",
        "/ (2 * self.expected_batch_size**2)", "/ self.expected_batch_size**2",
        f"{CHAIN_TESTS}::test_stationary_variance_of_one_parameter",
    ),
    mutant(
        "the noise that follows from the temperature is not the noise that is charged", BUDGET,
        "        self._noise_multiplier = noise_multiplier\n\n    def settle",
        "        self._noise_multiplier = 1.0\n\n    def settle",
        f"{CHAIN_TESTS}::test_the_noise_follows_from_temperature_and_learning_rate",
    ),
    mutant(
        "a chain takes steps with momentum", "lightning_dp/strategies/refusals/langevin.py",
        'for name in ("momentum", "dampening"', 'for name in ("dampening"',
        "tests/strategies/test_refusals.py::test_is_refused_before_anything_happens",
    ),
    mutant(
        "every sample is the last iterate", "lightning_dp/posterior/samples.py",
        'to("cpu", dtype, copy=True)', 'to("cpu", dtype)',
        f"{CHAIN_TESTS}::test_samples_are_the_iterates_of_their_steps",
    ),
    mutant(
        "samples from before the burn-in are kept", CHAIN,
        "if step > burn_in and (step - burn_in) % every == 0:", "if (step - burn_in) % every == 0:",
        f"{CHAIN_TESTS}::test_samples_are_the_iterates_of_their_steps",
    ),
    mutant(
        "numbers of the last iterate pass for the posterior's", CHAIN,
        "        if not calls():\n", "        if False:\n",
        f"{CHAIN_TESTS}::test_a_step_that_goes_past_the_average_is_refused_or_named",
    ),
    mutant(
        "another module's predictions are those of the samples", CHAIN,
        "return bool(self._samples) and (self._chain is None or self._chain() is self._module)", "return bool(self._samples)",
        f"{CHAIN_TESTS}::test_samples_are_not_another_modules",
    ),
    mutant(
        "a contradiction between noise, temperature and learning rate is let through",
        "lightning_dp/strategies/tempering.py",
        "if not math.isclose(follows, self.learning_rate, rel_tol=TOLERANCE):", "if False:",
        f"{CHAIN_TESTS}::test_all_three_are_accepted_if_they_agree_and_refused_with_numbers_if_not",
    ),
    mutant(
        "the prior forgets the number of samples", "lightning_dp/accounting/temperature.py",
        "return 1 / (self.dataset_size * positive(", "return 1 / (positive(",
        f"{CHAIN_TESTS}::test_conjugate_linear_regression",
    ),
)  # fmt: skip  # fmt: skip

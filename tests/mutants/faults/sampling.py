"""Faults of sampling."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import LEDGER, PLANNED, STRATEGY, TRAPS

__all__ = ("SAMPLING_FAULTS",)

SAMPLERS = "lightning_dp/sampling/samplers.py"
SAMPLER_TESTS = "tests/sampling/test_samplers.py"
BATCHES = "lightning_dp/sampling/batches.py"
CUT_TESTS = "tests/accounting/test_truncation.py"
UNIT_ROWS = "lightning_dp/sampling/units.py"
UNIT_TESTS = "tests/sampling/test_units.py"
LOADER = "lightning_dp/sampling/loader.py"

SAMPLING_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "shuffling accounted as Poisson sampling", SAMPLERS,
        "noise_multiplier=noise_multiplier, sample_rate=self.sample_rate, sampling=self.sampling",
        "noise_multiplier=noise_multiplier,\n"
        "            sample_rate=self._expected_batch_size / self._dataset_size,\n"
        '            sampling="poisson",',
        f"{TRAPS}::test_t11_shuffled_batches_claim_no_amplification",
    ),
    mutant(
        "shuffling may claim a rate", "lightning_dp/accounting/events.py",
        'if self.sampling == "shuffle" and rate != 1.0:', "if False:",
        f"{TRAPS}::test_t11_shuffled_batches_claim_no_amplification",
    ),
    mutant(
        "steps per epoch rounded down", SAMPLERS,
        "-(-self._dataset_size // self._expected_batch_size)", "self._dataset_size // self._expected_batch_size",
        f"{TRAPS}::test_t9_no_step_is_lost_to_rounding",
    ),
    mutant(
        "rate from the length of the loader", SAMPLERS,
        "return self._expected_batch_size / self._dataset_size", "return 1 / self.steps_per_epoch",
        f"{TRAPS}::test_t10_the_rate_is_batch_over_n_and_the_denominator_is_public",
    ),
    mutant(
        "a stand-in passes for a drawn sample", BATCHES, "+ (False,) * missing", "+ (True,) * missing",
        f"{TRAPS}::test_t4_an_empty_batch_is_empty",
    ),
    mutant(
        "ranks without samples have no batch", BATCHES, "missing = count - len(chunks)", "missing = 0",
        f"{TRAPS}::test_t3_all_ranks_take_the_same_steps",
    ),
    mutant(
        "cut draws cost no delta", "lightning_dp/accounting/accountants.py",
        "math.fsum(steps * event.tail for event, steps in gaussian_steps(entries))", "0.0",
        f"{CUT_TESTS}::test_the_tail_of_every_step_is_taken_off_delta",
    ),
    mutant(
        "the event of cut draws has no tail", SAMPLERS,
        "replace(super().event(noise_multiplier), tail=self.tail)", "super().event(noise_multiplier)",
        "tests/strategies/test_truncated.py::test_ledger_settings_and_reports_know_the_cut",
    ),
    mutant(
        "the last of a large draw are cut", SAMPLERS,
        "np.sort(stream(self._key, _CUT_DOMAIN, step).permutation(drawn)[: self._max_batch_size])",
        "drawn[: self._max_batch_size]",
        "tests/sampling/test_samplers.py::test_the_units_that_a_cut_leaves_are_chosen_uniformly",
    ),
    mutant(
        "a draw that is just full has no tail", SAMPLERS,
        "betainc(self._max_batch_size, self._dataset_size - self._max_batch_size + 1, self.sample_rate)",
        "betainc(self._max_batch_size + 1, self._dataset_size - self._max_batch_size, self.sample_rate)",
        "tests/sampling/test_samplers.py::test_the_tail_is_the_binomial_one",
    ),
    mutant(
        "the ledger forgets the tail", LEDGER,
        "more = [getattr(event, name) for name in", "more = [0.0 for name in",
        f"{CUT_TESTS}::test_a_ledger_keeps_the_tail_and_refuses_a_cut_draw_without_one",
    ),
    mutant(
        "a unit's rows are chosen once and for all", UNIT_ROWS,
        "stream(self._key, _ROWS_DOMAIN, step)", "stream(self._key, _ROWS_DOMAIN, 0)",
        f"{UNIT_TESTS}::test_rows_are_chosen_uniformly_and_afresh",
    ),
    mutant(
        "what a unit brings depends on who else is drawn", UNIT_ROWS,
        "lots[start:stop]", "lots[len(chosen) : len(chosen) + stop - start]",
        f"{UNIT_TESTS}::test_what_a_unit_brings_does_not_depend_on_who_else_is_drawn",
    ),
    mutant(
        "a unit is split over two chunks", BATCHES, "for unit in units:\n        if not chunks",
        "for unit in [(row,) for unit in units for row in unit]:\n        if not chunks",
        f"{UNIT_TESTS}::test_no_unit_is_split_and_none_is_lost",
        "tests/strategies/test_units.py::test_each_patient_is_clipped_as_a_whole",
    ),
    mutant(
        "samples without an owner are one person", UNIT_ROWS, " and i.lower() not in _MISSING", "",
        f"{UNIT_TESTS}::test_ids_that_are_no_clean_keys_are_refused",
    ),
    mutant(
        "a wrapper's ids are those of the whole data set", UNIT_ROWS,
        "if own and hasattr(dataset, name):", "if hasattr(dataset, name):",
        f"{UNIT_TESTS}::test_a_wrapper_that_answers_for_the_whole_data_set_is_not_believed",
    ),
    mutant(
        "a draw may feed two gradients", LOADER, "if step.step <= self._last_taken:", "if False:",
        "tests/sampling/test_loader.py::test_a_draw_is_not_used_for_two_gradients",
    ),
    mutant(
        "the seed of the process steers the draws", "lightning_dp/sampling/keys.py",
        "return secrets.token_bytes(_KEY_BYTES)",
        "import torch\n    return torch.initial_seed().to_bytes(_KEY_BYTES, 'big')",
        "tests/sampling/test_samplers.py::test_seeding_the_process_does_not_touch_the_draws",
    ),
    mutant(
        "the event of a pass claims a bin too many", SAMPLERS,
        "bins=self.steps_per_epoch)", "bins=self.steps_per_epoch + 1)",
        f"{SAMPLER_TESTS}::test_a_shuffled_pass_claims_no_amplification_and_balls_in_bins_their_number",
        "tests/strategies/test_budget.py::test_balls_in_bins_are_charged_once_per_pass_and_amplified",
    ),
    mutant(
        "balls fall alike in every pass", SAMPLERS,
        "rng = stream(self._key, _BINS_DOMAIN, number)", "rng = stream(self._key, _BINS_DOMAIN, 0)",
        f"{SAMPLER_TESTS}::test_balls_fall_uniformly_and_independently_of_each_other_and_of_the_pass",
    ),
    mutant(
        "bins are filled evenly", SAMPLERS,
        "bins = rng.integers(0, self.steps_per_epoch, size=self._dataset_size)",
        "bins = rng.permutation(self._dataset_size) % self.steps_per_epoch",
        f"{SAMPLER_TESTS}::test_batches_of_balls_in_bins_have_binomial_sizes",
        f"{SAMPLER_TESTS}::test_a_sample_more_moves_no_other_between_bins",
    ),
    mutant(
        "a pass is free once it has begun under another key", SAMPLERS,
        "return previous is None or step // self.steps_per_epoch != previous",
        "return step // self.steps_per_epoch != (previous or step)",
        f"{SAMPLER_TESTS}::test_the_plan_agrees_with_the_charges",
        f"{SAMPLER_TESTS}::test_passes_are_charged_once",
    ),
    mutant(
        "all samplers of a run have one key", PLANNED,
        "            self._key = following_key(self._key)\n", "            pass\n",
        "tests/strategies/test_budget.py::test_no_two_samplers_of_a_run_share_their_draws",
    ),
    mutant(
        "a reloaded loader goes on in a pass that is paid", STRATEGY,
        "        self._budget.forget_pass()\n", "",
        "tests/strategies/test_budget.py::test_a_loader_that_is_reloaded_within_a_pass_opens_another",
    ),
)  # fmt: skip  # fmt: skip

"""Faults that were, or could have been: each must turn at least one test red.

An edit replaces one piece of text that occurs exactly once in its file. When the code changes and a piece is no longer
found, the check stops: the fault must then be planted again in the new code, and not be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("MUTANTS", "Edit", "Mutant")

CLIPPING = "lightning_dp/gradients/clipping.py"
ADAPTIVE = "lightning_dp/gradients/adaptive.py"
BACKWARD = "lightning_dp/gradients/backward.py"
CONTRIBUTIONS = "lightning_dp/gradients/contributions/base.py"
EMBEDDING_ROWS = "lightning_dp/gradients/contributions/embedding_rows.py"
MEMORY = "lightning_dp/gradients/memory.py"
PRECISION = "lightning_dp/gradients/precision.py"
PRODUCT_SUM = "lightning_dp/gradients/contributions/product_sum.py"
ENGINE = "lightning_dp/gradients/engine.py"
GENERIC = "lightning_dp/gradients/generic.py"
ROW_MEMORY = "lightning_dp/gradients/row_memory.py"
WHOLE_BATCH = "lightning_dp/gradients/whole_batch.py"
BACKWARD = "lightning_dp/gradients/backward.py"
REPLAY = "lightning_dp/gradients/replay.py"
NOISE = "lightning_dp/gradients/noise.py"
TAPS = "lightning_dp/gradients/taps.py"
SAMPLERS = "lightning_dp/sampling/samplers.py"
BATCHES = "lightning_dp/sampling/batches.py"
LOADER = "lightning_dp/sampling/loader.py"
UNIT_ROWS = "lightning_dp/sampling/units.py"
LEDGER = "lightning_dp/accounting/ledger.py"
STRATEGY = "lightning_dp/strategies/base.py"
MANUAL = "lightning_dp/strategies/manual.py"
BUDGET = "lightning_dp/strategies/budget.py"

ADAPTING = "tests/gradients/test_adaptive.py"
LAYERS = "tests/gradients/test_clipping.py"
SENSITIVITY = "tests/gradients/test_sensitivity.py"
NOISES = "tests/gradients/test_noise.py"
LEAKS = "tests/gradients/test_leaks.py"
ROUTES = "tests/gradients/test_routes.py"
RULES = "tests/gradients/rules"
UNITS = "tests/gradients/test_units.py"
BY_HAND = "tests/strategies/test_manual.py"
CUT_TESTS = "tests/accounting/test_truncation.py"
GRAPHS = "tests/gradients/test_graphs.py"
SHARED = "tests/gradients/test_shared.py"
UNIT_TESTS = "tests/sampling/test_units.py"
TRAPS = "tests/traps/test_traps.py"


@dataclass(frozen=True)
class Edit:
    """Text to replace."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One fault: its edits, and the tests of which at least one must fail."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    fast: bool = False


def _mutant(name: str, file: str, old: str, new: str, *tests: str, fast: bool = False) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), tests, fast)


SCALE = 'scale = bound / (norms + STABILITY) if self.name == "automatic" else (bound / norms).clamp(max=1.0)'

CLIPPING_FAULTS = (
    _mutant(
        "no clipping", CLIPPING, SCALE, "scale = torch.ones_like(norms)",
        f"{TRAPS}::test_t1_every_sample_is_clipped_by_itself", fast=True,
    ),
    _mutant(
        "the mean is clipped and not the unit", ENGINE,
        "self.clipping.coefficients(squares * scale**2)", "self.clipping.coefficients(squares)",
        f"{TRAPS}::test_t1_every_sample_is_clipped_by_itself",
    ),
    _mutant(
        "loss reduction forgotten", ENGINE,
        "scale = units.loss_scale(self.loss_reduction)", "scale = 1.0",
        f"{ROUTES}::test_sum_reduction_equals_mean_reduction",
    ),
    _mutant(
        "each layer gets the whole bound", CLIPPING,
        "[self.max_grad_norm / math.sqrt(num_groups)] * num_groups", "[self.max_grad_norm] * num_groups",
        f"{SENSITIVITY}::test_unused_branch_and_per_layer_bounds",
    ),
    _mutant(
        "the sensitivity of several layers is that of the largest", CLIPPING,
        "math.hypot(*(bound for _, bound in layers)) if bounded", "max(bound for _, bound in layers) if bounded",
        f"{LAYERS}::test_the_noise_follows_the_root_of_the_sum_of_squares",
    ),
    _mutant(
        "a layer without a bound is let through", CLIPPING,
        "            elif parameter in taking_part:\n", "            elif False:\n",
        f"{LAYERS}::test_nothing_is_left_without_a_bound",
    ),
    _mutant(
        "the count's share of the privacy is forgotten", ADAPTIVE,
        "return float(left**-0.5)", "return noise_multiplier",
        f"{ADAPTING}::test_gradients_and_count_together_are_the_nominal_mechanism",
    ),
    _mutant(
        "the count is not centred", ADAPTIVE, "below.to(torch.float32) - BIT", "below.to(torch.float32)",
        f"{ADAPTING}::test_one_unit_moves_the_pair_by_at_most_what_is_accounted",
    ),
    _mutant(
        "the count has no noise", ADAPTIVE, "        if rank == 0:  # once over all ranks", "        if False:",
        f"{ADAPTING}::test_the_count_gets_its_own_noise",
    ),
    _mutant(
        "the threshold moves within a step", ENGINE,
        "self.threshold.observe((squares * scale**2).sum(0), weights)\n",
        "self.threshold.observe((squares * scale**2).sum(0), weights)\n"
        "            self.clipping = Clipping(1.0)\n",
        f"{ADAPTING}::test_physical_batches_share_one_threshold_and_one_count",
    ),
    _mutant(
        "a unit that is not finite is kept", CLIPPING,
        "finite = torch.isfinite(squared_norms.sum(0))", "finite = torch.ones_like(squared_norms[0], dtype=torch.bool)",
        f"{TRAPS}::test_t8_one_sample_that_is_not_finite_neither_destroys_nor_shows", fast=True,
    ),
    _mutant(
        "weight zero times infinity", ENGINE,
        "contribution if everything_finite else contribution.keep(finite)", "contribution",
        f"{TRAPS}::test_t8_one_sample_that_is_not_finite_neither_destroys_nor_shows",
    ),
    _mutant(
        "norms of the parts for layers used twice", BACKWARD,
        "self._norms[parameter], kept[parameter] = joint_squared_norms(uses)",
        "self._norms[parameter] = torch.stack([use.squared_norms() for use in uses]).sum(0)",
        f"{ROUTES}::test_network_matches_plain_loop",
    ),
    _mutant(
        "a tied weight's second use is lost", BACKWARD, "uses.append(contribution)", "uses[:] = [contribution]",
        f"{ROUTES}::test_network_matches_plain_loop",
    ),
    Mutant(
        "records of the pass before are kept",
        (
            Edit(BACKWARD, "        self._uses: dict[nn.Parameter, list[Contribution]] = {}",
                 "        self._uses = taps.__dict__.setdefault('kept', {})"),
        ),
        (f"{TRAPS}::test_t5_no_norm_outlives_its_pass",),
    ),
    _mutant(
        "several physical batches: only the last one counts", ENGINE,
        "        self._buffers()\n        group, ", "        self._forget_sums()\n        self._buffers()\n        group, ",
        f"{TRAPS}::test_t6_physical_batches_add_up",
    ),
    _mutant(
        "one buffer for two layers", MEMORY, "self._lent.append(flat)", "self._free.append(flat)",
        f"{ROUTES}::test_held_gradients_of_two_layers_do_not_meet",
    ),
    _mutant(
        "cancellation is not repaired", BACKWARD, "            self._repair()\n", "",
        f"{ROUTES}::test_cancelling_terms_are_repaired_by_the_engine",
    ),
    _mutant(
        "weights are not checked", ENGINE,
        "        _check_weights(weights, units)\n", "",
        f"{SENSITIVITY}::test_weights_that_would_break_the_bound_are_refused",
    ),
    _mutant(
        "long sums of squares stagnate", CONTRIBUTIONS,
        "whole = flat.shape[1] - flat.shape[1] % BLOCK", "whole = 0",
        f"{SENSITIVITY}::test_the_norm_of_many_like_terms_is_not_rounded_down",
    ),
    _mutant(
        "terms that cancel count for what is left", PRODUCT_SUM,
        "return torch.maximum(norms + self._bounds[0], self._bounds[1])", "return norms + self._bounds[0]",
        f"{ROUTES}::test_no_route_counts_a_unit_as_smaller_than_its_terms_resolve",
        f"{SENSITIVITY}::test_positions_that_cancel_do_not_round_the_others_away",
        f"{SENSITIVITY}::test_patches_that_cancel_do_not_round_the_others_away",
    ),
    _mutant(
        "tokens that cancel round the others away", EMBEDDING_ROWS,
        "        unit, index, rows = self._rows()\n",
        "        unit = torch.arange(self.num_units).unsqueeze(1).expand_as(self.index).flatten()\n"
        "        index, rows = self.index.flatten(), self.b.flatten(0, 1)\n",
        f"{SENSITIVITY}::test_a_token_that_cancels_itself_does_not_round_the_others_away",
    ),
    _mutant(
        "squares that underflow", PRODUCT_SUM, "LOST = 2.0**-126", "LOST = 0.0",
        f"{SENSITIVITY}::test_a_huge_input_times_a_vanishing_gradient_is_seen",
    ),
    _mutant(
        "low matmul precision reaches the norms", PRECISION, "right = all(", "right = True or all(",
        f"{SENSITIVITY}::test_low_matmul_precision_does_not_reach_norms_and_sums",
    ),
    _mutant(
        "ragged units padded with zeros", GENERIC,
        "split = [units.by_unit(t.detach(), name, repeat=True)", "split = [units.by_unit(t.detach(), name)",
        f"{SENSITIVITY}::test_a_unit_of_any_number_of_rows_moves_the_sum_by_at_most_the_bound",
    ),
)  # fmt: skip

NOISE_FAULTS = (
    _mutant(
        "noise halved", ENGINE,
        "self.gradient_noise_multiplier * sensitivity", "0.5 * self.gradient_noise_multiplier * sensitivity",
        f"{NOISES}::test_scale_follows_the_clipping_and_the_public_batch_size", fast=True,
    ),
    _mutant(
        "noise with every physical batch", ENGINE,
        "usable.add_weighted_sum(coefficients[group[parameter]], self._sums[parameter])",
        "usable.add_weighted_sum(coefficients[group[parameter]], self._sums[parameter])\n"
        "                self.noise.add_(self._sums[parameter], self.noise_multiplier * self.clipping.sensitivity)",
        f"{NOISES}::test_noise_comes_once_per_logical_step",
    ),
    _mutant(
        "no noise on an empty step", ENGINE,
        "            self.noise.add_(flat[start:stop]", "            if self._bound: self.noise.add_(flat[start:stop]",
        f"{NOISES}::test_noise_comes_once_per_logical_step",
    ),
    _mutant(
        "no noise where no gradient arrived", ENGINE,
        "            self.noise.add_(flat[start:stop], self.gradient_noise_multiplier * sensitivity)\n",
        "            touched = (flat != 0).to(flat)\n"
        "            self.noise.add_(flat[start:stop], self.gradient_noise_multiplier * sensitivity)\n"
        "            flat.mul_(touched)\n",
        f"{NOISES}::test_parameters_without_a_gradient_get_noise_too",
    ),
    _mutant(
        "every rank adds the whole noise", ENGINE, "self.noise.add_(flat[start:stop]", "self.noise.add_(flat",
        f"{NOISES}::test_the_sum_over_ranks_has_the_size_of_one_draw",
    ),
    _mutant(
        "only the first rank's slice is noised", ENGINE, "self.noise.add_(flat[start:stop]",
        "self.noise.add_(flat[start:stop] if rank == 0 else flat[:0]",
        f"{NOISES}::test_every_coordinate_gets_exactly_one_draw_over_all_ranks",
    ),
    _mutant(
        "mean over ranks", "lightning_dp/strategies/processes.py",
        "op=torch.distributed.ReduceOp.SUM)\n        return tensor",
        "op=torch.distributed.ReduceOp.SUM)\n        return tensor / self.world_size",
        f"{TRAPS}::test_t7_ranks_are_summed_and_not_averaged",
    ),
    _mutant(
        "noise from torch's global generator", NOISE, "secrets.randbits(256)", "torch.initial_seed()",
        f"{NOISES}::test_global_seeds_do_not_reach_the_noise",
    ),
    _mutant(
        "noise rounded to bfloat16", NOISE,
        "first.addcmul_(radius, cosine)", "first.add_((radius * cosine).bfloat16())",
        f"{TRAPS}::test_t14_noise_is_drawn_in_single_precision",
        f"{NOISES}::test_noise_is_float32_under_bfloat16_autocast",
    ),
    _mutant(
        "bound changed without its noise", ENGINE,
        "sensitivity = max(self._bound, self.clipping.sensitivity)", "sensitivity = self.clipping.sensitivity",
        f"{TRAPS}::test_t2_the_bound_and_the_noise_are_one_fact",
    ),
    _mutant(
        "realised batch size as denominator", ENGINE,
        "        self._bound = max(self._bound, self.clipping.sensitivity)\n",
        "        self._bound = max(self._bound, self.clipping.sensitivity)\n"
        "        self.expected_batch_size = float(units.num_units)\n",
        f"{TRAPS}::test_t10_the_rate_is_batch_over_n_and_the_denominator_is_public",
    ),
)  # fmt: skip

LEAK_FAULTS = (
    _mutant(
        "leaks are not looked for", ENGINE, "            self._refuse_leaks()\n", "",
        f"{LEAKS}::test_a_weight_used_outside_its_module_is_refused_by_name",
    ),
    _mutant(
        "layers that join later are not looked for", ENGINE, "untapped = self._taps.untapped()", "untapped = []",
        f"{LEAKS}::test_a_layer_that_joins_later_is_refused_by_name",
    ),
    _mutant(
        "samples that meet in a small part of the network", "lightning_dp/strategies/selfcheck.py",
        "        self._compare_parts(one, other)\n", "",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    _mutant(
        "norms taken as safe from cancellation unseen", PRODUCT_SUM,
        "if self._nothing_cancels(norms):", "if True:",
        f"{ROUTES}::test_no_route_counts_a_unit_as_smaller_than_its_terms_resolve",
    ),
    _mutant(
        "noise whose square underflows", NOISE, "mul_(-2.0).sqrt_().mul_(std)", "mul_(-2.0 * std**2).sqrt_()",
        f"{NOISES}::test_sizes_whose_squares_float32_cannot_hold_are_kept",
    ),
    _mutant(
        "changed inputs are not noticed", TAPS, "ctx.save_for_backward(record.inputs[0][0])",
        "ctx.save_for_backward(record.inputs[0][0].data)",
        f"{LEAKS}::test_an_input_changed_after_use_is_refused_by_name",
    ),
    _mutant(
        "the generic rule trusts its repetition", GENERIC,
        "    if not all(reproduces(", "    if False and not all(reproduces(",
        f"{LEAKS}::test_a_leaf_that_couples_its_rows_is_refused_by_name",
    ),
    _mutant(
        "every repetition passes for the recorded call", REPLAY,
        "return bool((difference <= tolerance * scale).all())", "return True",
        f"{RULES}/test_attention.py::test_masks_that_cannot_be_drawn_again_are_refused_by_name",
    ),
    _mutant(
        "a recurrent layer's dropout masks are taken on trust", "lightning_dp/gradients/rules/recurrent.py",
        "if not all(reproduces(", "if False and not all(reproduces(",
        f"{RULES}/test_recurrent.py::test_masks_that_cannot_be_drawn_again_are_refused_by_name",
    ),
    _mutant(
        "time steps of a transformer are taken for rows", TAPS,
        "record.batch_first() if record.module in taps.sequence_first else record", "record",
        f"{RULES}/test_attention.py::test_an_encoder_agrees_in_every_batch_size",
    ),
    _mutant(
        "a recurrent layer's time axis is taken for the batch", BACKWARD,
        "grad.shape[0] if record.rows is None else record.rows(record.module, args, kwargs)", "grad.shape[0]",
        f"{RULES}/test_recurrent.py::test_any_recurrent_layer_agrees",
    ),
    _mutant(
        "rows of an earlier pass are taken for this one's", TAPS,
        "if ctx.used or ctx.generation != taps.generation:", "if False:",
        f"{LEAKS}::test_a_loss_that_reaches_back_to_earlier_rows_is_refused",
    ),
    _mutant(
        "an axis that is not the batch's goes unnoticed", ROW_MEMORY,
        "        if not left:\n", "        if False:\n",
        f"{UNITS}::test_a_wrong_axis_that_divides_evenly_is_caught_when_the_batch_size_changes",
    ),
    _mutant(
        "nodes are taken for edges where their numbers agree", ROW_MEMORY,
        "if any(not torch.equal(owners,", "if any(False and not torch.equal(owners,",
        f"{GRAPHS}::test_equal_numbers_of_nodes_and_edges_are_refused_while_nothing_told_them_apart",
    ),
    _mutant(
        "a graph that is not finite reaches the others", WHOLE_BATCH,
        "if not all(bool(torch.isfinite(g).all()) for g in gradients):", "if False:",
        f"{GRAPHS}::test_a_graph_that_is_not_finite_spares_the_others",
    ),
    _mutant(
        "a norm over all graphs goes unnoticed", WHOLE_BATCH,
        "(rows * foreign).max() > APART", "(rows * foreign).max() > 1e9 + APART",
        f"{GRAPHS}::test_a_norm_without_the_batch_vector_is_refused",
    ),
    _mutant(
        "positions shared by the batch are taken for samples", ROW_MEMORY,
        "                self._shared.add((name, call))\n", "                return False\n",
        f"{SHARED}::test_matches_the_loop_at_every_batch_size",
    ),
    _mutant(
        "copies keep live taps", TAPS, "    taps._paused = True\n    return taps", "    return taps",
        f"{LEAKS}::test_a_copy_of_a_tapped_network_is_an_ordinary_network",
    ),
)  # fmt: skip

SAMPLING_FAULTS = (
    _mutant(
        "shuffling accounted as Poisson sampling", SAMPLERS,
        "noise_multiplier=noise_multiplier, sample_rate=self.sample_rate, sampling=self.sampling",
        "noise_multiplier=noise_multiplier,\n"
        "            sample_rate=self._expected_batch_size / self._dataset_size,\n"
        '            sampling="poisson",',
        f"{TRAPS}::test_t11_shuffled_batches_claim_no_amplification",
    ),
    _mutant(
        "shuffling may claim a rate", "lightning_dp/accounting/events.py",
        'if self.sampling == "shuffle" and rate != 1.0:', "if False:",
        f"{TRAPS}::test_t11_shuffled_batches_claim_no_amplification",
    ),
    _mutant(
        "steps per epoch rounded down", SAMPLERS,
        "-(-self._dataset_size // self._expected_batch_size)", "self._dataset_size // self._expected_batch_size",
        f"{TRAPS}::test_t9_no_step_is_lost_to_rounding",
    ),
    _mutant(
        "rate from the length of the loader", SAMPLERS,
        "return self._expected_batch_size / self._dataset_size", "return 1 / self.steps_per_epoch",
        f"{TRAPS}::test_t10_the_rate_is_batch_over_n_and_the_denominator_is_public",
    ),
    _mutant(
        "a stand-in passes for a drawn sample", BATCHES, "+ (False,) * missing", "+ (True,) * missing",
        f"{TRAPS}::test_t4_an_empty_batch_is_empty",
    ),
    _mutant(
        "ranks without samples have no batch", BATCHES, "missing = count - len(chunks)", "missing = 0",
        f"{TRAPS}::test_t3_all_ranks_take_the_same_steps",
    ),
    _mutant(
        "cut draws cost no delta", "lightning_dp/accounting/accountants.py",
        "math.fsum(steps * event.tail for event, steps in gaussian_steps(entries))", "0.0",
        f"{CUT_TESTS}::test_the_tail_of_every_step_is_taken_off_delta",
    ),
    _mutant(
        "the event of cut draws has no tail", SAMPLERS,
        "replace(super().event(noise_multiplier), tail=self.tail)", "super().event(noise_multiplier)",
        "tests/strategies/test_truncated.py::test_ledger_settings_and_reports_know_the_cut",
    ),
    _mutant(
        "the last of a large draw are cut", SAMPLERS,
        "np.sort(stream(self._key, _CUT_DOMAIN, step).permutation(drawn)[: self._max_batch_size])",
        "drawn[: self._max_batch_size]",
        "tests/sampling/test_samplers.py::test_the_units_that_a_cut_leaves_are_chosen_uniformly",
    ),
    _mutant(
        "a draw that is just full has no tail", SAMPLERS,
        "betainc(self._max_batch_size, self._dataset_size - self._max_batch_size + 1, self.sample_rate)",
        "betainc(self._max_batch_size + 1, self._dataset_size - self._max_batch_size, self.sample_rate)",
        "tests/sampling/test_samplers.py::test_the_tail_is_the_binomial_one",
    ),
    _mutant(
        "the ledger forgets the tail", LEDGER,
        "[event.tail] if event.sampling", "[0.0] if event.sampling",
        f"{CUT_TESTS}::test_a_ledger_keeps_the_tail_and_refuses_a_cut_draw_without_one",
    ),
    _mutant(
        "a unit's rows are chosen once and for all", UNIT_ROWS,
        "stream(self._key, _ROWS_DOMAIN, step)", "stream(self._key, _ROWS_DOMAIN, 0)",
        f"{UNIT_TESTS}::test_rows_are_chosen_uniformly_and_afresh",
    ),
    _mutant(
        "what a unit brings depends on who else is drawn", UNIT_ROWS,
        "lots[start:stop]", "lots[len(chosen) : len(chosen) + stop - start]",
        f"{UNIT_TESTS}::test_what_a_unit_brings_does_not_depend_on_who_else_is_drawn",
    ),
    _mutant(
        "a unit is split over two chunks", BATCHES, "for unit in units:\n        if not chunks",
        "for unit in [(row,) for unit in units for row in unit]:\n        if not chunks",
        f"{UNIT_TESTS}::test_no_unit_is_split_and_none_is_lost",
        "tests/strategies/test_units.py::test_each_patient_is_clipped_as_a_whole",
    ),
    _mutant(
        "samples without an owner are one person", UNIT_ROWS, " and i.lower() not in _MISSING", "",
        f"{UNIT_TESTS}::test_ids_that_are_no_clean_keys_are_refused",
    ),
    _mutant(
        "a wrapper's ids are those of the whole data set", UNIT_ROWS,
        "if own and hasattr(dataset, name):", "if hasattr(dataset, name):",
        f"{UNIT_TESTS}::test_a_wrapper_that_answers_for_the_whole_data_set_is_not_believed",
    ),
    _mutant(
        "a draw may feed two gradients", LOADER, "if step.step <= self._last_taken:", "if False:",
        "tests/sampling/test_loader.py::test_a_draw_is_not_used_for_two_gradients",
    ),
    _mutant(
        "the seed of the process steers the draws", "lightning_dp/sampling/keys.py",
        "return secrets.token_bytes(_KEY_BYTES)",
        "import torch\n    return torch.initial_seed().to_bytes(_KEY_BYTES, 'big')",
        "tests/sampling/test_samplers.py::test_seeding_the_process_does_not_touch_the_draws",
    ),
)  # fmt: skip

ACCOUNTING_FAULTS = (
    _mutant(
        "a restored ledger overwrites", LEDGER,
        "mine[event] = max(mine.get(event, 0), steps)", "mine[event] = steps",
        "tests/accounting/test_ledger.py::test_an_old_checkpoint_does_not_erase_later_steps", fast=True,
    ),
    _mutant(
        "the ledger starts anew on resume", LEDGER,
        "        segments = _parse(state)\n", "        segments = _parse(state)\n        self._segments.clear()\n",
        "tests/accounting/test_ledger.py::test_two_runs_resumed_from_one_checkpoint_add_up",
        "tests/strategies/test_resume.py::test_an_older_checkpoint_never_lowers_the_ledger",
    ),
    _mutant(
        "steps dropped in Renyi composition", "lightning_dp/accounting/renyi.py",
        "total = total + steps * rdp_step(", "total = total + rdp_step(",
        "tests/accounting/test_renyi.py::test_epsilon_and_delta_agree_with_dp_accounting",
    ),
    _mutant(
        "the direction of removing is dropped", "lightning_dp/accounting/pld.py",
        "return max(0.0, *(float(pmf.get_epsilon_for_delta(usable)) for pmf in (self.remove, self.add)))",
        "return max(0.0, float(self.add.get_epsilon_for_delta(usable)))",
        "tests/accounting/test_accountants.py::test_both_directions_are_in_the_answer",
        "tests/accounting/test_accountants.py::test_eps_and_delta_agree_with_dp_accounting_from_above",
    ),
    _mutant(
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
    _mutant(
        "a schedule's noise is charged and not added", STRATEGY,
        "        self._running_engine.noise_multiplier = event.noise_multiplier  # what is charged is what is added\n", "",
        "tests/strategies/test_schedules.py::test_each_step_is_charged_with_its_own_noise",
    ),
    _mutant(
        "a schedule's steps are charged alike", BUDGET,
        "        event = self.event_of(step)\n", "        event = self.event\n",
        "tests/strategies/test_schedules.py::test_a_scheduled_run_is_calibrated_to_the_budget",
    ),
    _mutant(
        "calibration forgets the schedule", BUDGET,
        "factors=None if self.schedule is None else self._factors(start, max(1, planned)),", "factors=None,",
        "tests/strategies/test_schedules.py::test_a_scheduled_run_is_calibrated_to_the_budget",
    ),
    _mutant(
        "skipped steps pay for dearer ones", BUDGET,
        "return step < self._covered", "return self._remaining() > 0",
        "tests/strategies/test_schedules.py::test_steps_that_were_skipped_do_not_pay_for_dearer_ones",
    ),
    _mutant(
        "not charged at all", BUDGET, "            self.ledger.charge(event)\n", "",
        "tests/strategies/test_budget.py::test_the_planned_run_spends_just_the_budget[rdp-3.0]",
    ),
    _mutant(
        "the budget never ends", BUDGET,
        "if self._target is None or not self._costs(step):", "if True:",
        "tests/strategies/test_budget.py::test_a_second_fit_stops_at_once_and_says_so",
        "tests/strategies/test_budget.py::test_a_resumed_run_stops_before_it_overshoots",
    ),
)  # fmt: skip

MANUAL_FAULTS = (
    _mutant(
        "optimizers of one draw are noised as if each were alone", MANUAL,
        "return math.sqrt(len(self.private))", "return 1.0",
        f"{BY_HAND}::test_optimizers_share_the_event_of_their_draw",
    ),
    _mutant(
        "several backward passes for one step", MANUAL, "if self._pending is not None:", "if False:",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    _mutant(
        "several releases of one optimizer on one draw", MANUAL,
        "            self._released.append(optimizer)\n", "",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    _mutant(
        "steps round the strategy", MANUAL, "if self._stepping is not optimizer:", "if False:",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    _mutant(
        "backward passes round the strategy", MANUAL, "            if not self._passing:\n", "            if False:\n",
        f"{BY_HAND}::test_is_stopped_in_the_step",
    ),
    _mutant(
        "post-processing is not compared over batches", "lightning_dp/strategies/manualcheck.py",
        "if not error <= SAME:", "if False:",
        f"{BY_HAND}::test_is_stopped_before_the_first_step",
    ),
    _mutant(
        "a passage through the discriminator is noised for the generator's sake", MANUAL,
        "        if reaches(loss, self.public_parameters):\n", "        if False:\n",
        f"{BY_HAND}::test_the_discriminator_is_clipped_per_sample_and_the_generator_is_not",
    ),
)  # fmt: skip

STRATEGY_FAULTS = (
    _mutant(
        "a stand-in has weight one", "lightning_dp/strategies/step.py",
        "return None if draw.real[self._chunk] else torch.zeros(self.samples.num_units)", "return None",
        "tests/strategies/test_empty_draws.py::test_a_stand_in_contributes_exactly_nothing",
    ),
    _mutant(
        "every sample of a patient is clipped by itself", "lightning_dp/strategies/step.py",
        "if rows is not None:", "if False:",
        "tests/strategies/test_units.py::test_each_patient_is_clipped_as_a_whole",
        "tests/strategies/test_units.py::test_a_whole_patient_changes_the_sum_by_at_most_c",
    ),
    _mutant(
        "others' samples scale a unit", "lightning_dp/gradients/units.py",
        "total / self.terms.double()", "1.0 / self.terms.double()",
        f"{UNITS}::test_a_loss_over_samples_gives_each_unit_the_mean_of_its_own",
    ),
    _mutant(
        "the rate is that of samples and not of units", STRATEGY,
        "n = len(dataloader.dataset) if self._rows is None else self._rows.num_units", "n = len(dataloader.dataset)",
        "tests/strategies/test_units.py::test_the_ledger_and_every_report_count_patients",
    ),
    _mutant(
        "spending on samples passes for spending on patients", BUDGET,
        "if unit != self.unit and theirs.entries:", "if False:",
        "tests/strategies/test_units.py::test_spending_on_other_units_is_not_added_up",
    ),
    _mutant(
        "the sampling key goes into the checkpoint", STRATEGY,
        '"position": self._position, "budget"', '"position": self._position, "key": self._key, "budget"',
        "tests/strategies/test_resume.py::test_the_checkpoint_is_plain_python_and_holds_no_secret",
    ),
    _mutant(
        "batch normalisation is accepted", "lightning_dp/strategies/refusals/module.py",
        "found = modules_of(s, _BatchNorm)", "found: list[str] = []",
        "tests/strategies/test_refusals.py::test_is_refused_before_anything_happens",
    ),
    _mutant(
        "the self-check does not look for coupled samples", "lightning_dp/strategies/selfcheck.py",
        "        check.units_are_independent()\n", "",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    _mutant(
        "the self-check does not look at buffers", "lightning_dp/strategies/selfcheck.py",
        "        check.state_is_not_written()\n", "",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
)  # fmt: skip

TARGETS = "lightning_dp/accounting/targets.py"
ROBUSTNESS = "lightning_dp/accounting/risk/reconstruction.py"
WORST_CASE = "tests/accounting/risk/test_reconstruction.py"
RISK_RUNS = "tests/strategies/test_risk_budget.py"
RISK_FAULTS = (
    _mutant(
        "the trade-off curve is read in the wrong direction", "lightning_dp/accounting/pld.py",
        "return _least(self.delta_remove if remove else self.delta_add, level)",
        "return _least(self.delta_add if remove else self.delta_remove, level)",
        f"{WORST_CASE}::test_the_papers_direction_has_the_run_without_the_sample_as_null",
        f"{WORST_CASE}::test_composed_subsampled_table",
    ),
    _mutant(
        "the better direction counts", ROBUSTNESS,
        "side: Side = max(found,", "side: Side = min(found,",
        f"{WORST_CASE}::test_the_papers_direction_has_the_run_without_the_sample_as_null",
    ),
    _mutant(
        "a bound above a line is taken for one below", "lightning_dp/accounting/pld.py",
        "        return delta(eps) + math.exp(eps) * level\n", "        return delta(eps) + eps * level\n",
        f"{WORST_CASE}::test_composed_subsampled_table",
    ),
    _mutant(
        "cut draws cost no risk", ROBUSTNESS,
        "min(1.0, composition.power(kappa, remove) + failure(entries))", "min(1.0, composition.power(kappa, remove))",
        f"{WORST_CASE}::test_cut_draws_are_added",
    ),
    _mutant(
        "kappa of a guess among n is smaller than it is", "lightning_dp/accounting/risk/closed_forms.py",
        "return 1.0 / dataset_size", "return 0.1 / dataset_size",
        "tests/accounting/risk/test_closed_forms.py::test_kappa_of",
        "tests/accounting/test_targets.py::test_kappa_is_filled_in",
    ),
    _mutant(
        "the blind guess comes on top of gamma", TARGETS,
        "        return self.gamma - self._kappa\n", "        return self.gamma\n",
        "tests/accounting/test_targets.py::test_the_calibrated_number_is_the_reported_one",
    ),
    _mutant(
        "noise makes up for participation that it does not hide", "lightning_dp/accounting/participation.py",
        "    remove = gains[0] + np.sum(beyond[:-1] * np.maximum(np.diff(gains), 0.0)) + beyond[-1]\n",
        "    remove = gains[0]\n",
        f"{WORST_CASE}::test_the_limits_of_noise",
    ),
    _mutant(
        "a risk is calibrated to and not enforced", BUDGET,
        "if self._target is None or not self._costs(step):", "if self.eps is None or not self._costs(step):",
        f"{RISK_RUNS}::test_a_longer_plan_ends_with_the_risk",
    ),
    _mutant(
        "noise calibrated to another risk is taken over", BUDGET,
        'same = state["eps"] == self.eps and state.get("risk") == (None if self.risk is None else str(self.risk))',
        'same = state["eps"] == self.eps',
        f"{RISK_RUNS}::test_a_resumed_run_goes_on_with_what_is_left",
    ),
)  # fmt: skip

ASCENT = "lightning_dp/gradients/ascent"
PASSES = "tests/gradients/ascent/test_passes.py"
BAM = "lightning_dp/strategies/bam.py"
BAM_TESTS = "tests/strategies/test_bam.py"

ASCENT_FAULTS = (
    _mutant(
        "the plain gradient is clipped, and the second one added unclipped", CONTRIBUTIONS,
        "    parts = [(share, c) for c in second if share] + [(1 - share, c) for c in first if share < 1]\n",
        "    parts = [(1e3 * share, c) for c in second if share] + [(1 - share, c) for c in first if share < 1]\n",
        f"{PASSES}::test_matches_a_plain_loop_over_units", f"{PASSES}::test_the_quadratic_has_its_closed_form",
    ),
    _mutant(
        "the bound is that of the plain gradient", f"{ASCENT}/passes.py",
        "squares = found.repaired(found.squared_norms())", "squares = self.plain()[0].get(parameter, found.squared_norms())",
        f"{PASSES}::test_matches_a_plain_loop_over_units",
        f"{PASSES}::test_one_unit_moves_the_sum_by_at_most_the_bound",
    ),
    _mutant(
        "all units move along their common gradient", f"{ASCENT}/directions.py",
        "return tensor * self.steps", "return tensor.mean(0, keepdim=True) * self.steps",
        f"{PASSES}::test_one_unit_moves_the_sum_by_at_most_the_bound",
        f"{PASSES}::test_matches_a_plain_loop_over_units",
    ),
    _mutant(
        "the ascent is not of unit length", f"{ASCENT}/directions.py",
        "radius / torch.where(moved, norms, norms.new_ones(()))", "norms.new_tensor(radius)",
        f"{PASSES}::test_the_quadratic_has_its_closed_form",
    ),
    _mutant(
        "a unit whose first gradient is not finite counts by its second", f"{ASCENT}/passes.py",
        'norms[parameter] = torch.where(finite, squares, squares.new_full((), float("inf")))', "norms[parameter] = squares",
        f"{PASSES}::test_a_unit_whose_first_gradient_alone_is_not_finite_is_dropped",
    ),
    _mutant(
        "the second pass draws other random numbers", BAM,
        "with first.randomness.replayed(), _compat", "with _compat",
        f"{BAM_TESTS}::test_both_passes_draw_the_same_numbers_and_the_second_logs_nothing",
    ),
    _mutant(
        "attention drops others in the second pass", f"{ASCENT}/attention.py",
        "with nullcontext() if random_state is None else random_state.replayed():", "with nullcontext():",
        f"{PASSES}::test_both_passes_drop_the_same",
    ),
    _mutant(
        "a batch that was changed in place is passed over again", "lightning_dp/strategies/ascentcheck.py",
        "if versions(batch) != before:", "if False:",
        f"{BAM_TESTS}::test_a_batch_changed_in_place_is_seen_without_the_self_check",
    ),
    _mutant(
        "the self-check does not look at mixed gradients", "lightning_dp/strategies/selfcheck.py",
        "        check.mechanism_is_right()\n", "",
        f"{BAM_TESTS}::test_a_layer_moved_wrongly_is_seen_before_the_first_step",
    ),
    _mutant(
        "the self-check does not look whether mixed gradients keep apart", "lightning_dp/strategies/ascentcheck.py",
        "        self.units_are_independent()\n", "",
        f"{BAM_TESTS}::test_units_that_share_a_point_are_seen_before_the_first_step",
    ),
    _mutant(
        "the parameters stay at the moved point", "lightning_dp/strategies/previous.py",
        "                    parameter.copy_(value)\n", "                    pass\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    _mutant(
        "the parameters are moved back by arithmetic", "lightning_dp/strategies/previous.py",
        "                for parameter, value in before:\n                    parameter.copy_(value)\n",
        "                for parameter, gradient in self._released:\n"
        "                    parameter.sub_(gradient, alpha=self.radius / squares**0.5)\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    _mutant(
        "the ascent follows the clipped sum before its noise", BAM,
        "        super()._write_gradients()\n        if self._previous is not None:\n"
        "            self._previous.remember(engine.trainable())\n",
        "        if self._previous is not None:\n"
        "            for p, g in zip(engine.trainable(), engine.clipped_sum(), strict=True):\n                p.grad = g\n"
        "            self._previous.remember(engine.trainable())\n        super()._write_gradients()\n",
        f"{BAM_TESTS}::test_the_gradient_is_taken_along_the_last_release_and_nowhere_else",
    ),
    _mutant(
        "the measured bias is logged without a word", BAM,
        "        if self._logs_bias:\n            self._running_engine.probe = BiasProbe()\n            rank_zero_warn(",
        "        if self._logs_bias:\n            self._running_engine.probe = BiasProbe()\n            str(",
        f"{BAM_TESTS}::test_the_accountant_reports_it_and_the_bias_is_named_as_uncovered",
    ),
)  # fmt: skip

CHAIN = "lightning_dp/strategies/langevin.py"
CHAIN_TESTS = "tests/strategies/test_langevin.py"

LANGEVIN_FAULTS = (
    _mutant(
        "the temperature is twice what it is", "lightning_dp/accounting/temperature.py",
        "/ (2 * self.expected_batch_size**2)", "/ self.expected_batch_size**2",
        f"{CHAIN_TESTS}::test_stationary_variance_of_one_parameter",
    ),
    _mutant(
        "the noise that follows from the temperature is not the noise that is charged", BUDGET,
        "        self._noise_multiplier = noise_multiplier\n\n    def settle",
        "        self._noise_multiplier = 1.0\n\n    def settle",
        f"{CHAIN_TESTS}::test_the_noise_follows_from_temperature_and_learning_rate",
    ),
    _mutant(
        "a chain takes steps with momentum", "lightning_dp/strategies/refusals/langevin.py",
        'for name in ("momentum", "dampening"', 'for name in ("dampening"',
        "tests/strategies/test_refusals.py::test_is_refused_before_anything_happens",
    ),
    _mutant(
        "every sample is the last iterate", "lightning_dp/posterior/samples.py",
        'to("cpu", dtype, copy=True)', 'to("cpu", dtype)',
        f"{CHAIN_TESTS}::test_samples_are_the_iterates_of_their_steps",
    ),
    _mutant(
        "samples from before the burn-in are kept", CHAIN,
        "if step > burn_in and (step - burn_in) % every == 0:", "if (step - burn_in) % every == 0:",
        f"{CHAIN_TESTS}::test_samples_are_the_iterates_of_their_steps",
    ),
    _mutant(
        "numbers of the last iterate pass for the posterior's", CHAIN,
        "        if not calls():\n", "        if False:\n",
        f"{CHAIN_TESTS}::test_a_step_that_goes_past_the_average_is_refused_or_named",
    ),
    _mutant(
        "another module's predictions are those of the samples", CHAIN,
        "return bool(self._samples) and (self._chain is None or self._chain() is self._module)", "return bool(self._samples)",
        f"{CHAIN_TESTS}::test_samples_are_not_another_modules",
    ),
    _mutant(
        "a contradiction between noise, temperature and learning rate is let through",
        "lightning_dp/strategies/tempering.py",
        "if not math.isclose(follows, self.learning_rate, rel_tol=TOLERANCE):", "if False:",
        f"{CHAIN_TESTS}::test_all_three_are_accepted_if_they_agree_and_refused_with_numbers_if_not",
    ),
    _mutant(
        "the prior forgets the number of samples", "lightning_dp/accounting/temperature.py",
        "return 1 / (self.dataset_size * positive(", "return 1 / (positive(",
        f"{CHAIN_TESTS}::test_conjugate_linear_regression",
    ),
)  # fmt: skip

NEURAL = "lightning_dp/strategies/neural"
RELEASING = "tests/strategies/test_neural_dp.py"
PRIVATISING = "tests/strategies/neural/test_privatise.py"
RELEASE_ACCOUNTING = "tests/accounting/test_releases.py"

NEURAL_FAULTS = (
    _mutant(
        "activations are released unclipped", f"{NEURAL}/privatise.py",
        "scale = torch.minimum(largest, bound * _ROUNDING / unit.norm(dim=1, keepdim=True).clamp_min(1.0))",
        "scale = largest",
        f"{PRIVATISING}::test_no_row_is_longer_than_the_bound",
    ),
    _mutant(
        "a release gets half its noise", f"{NEURAL}/privatise.py",
        "noise_multiplier * bound)", "noise_multiplier * bound / 2)",
        f"{PRIVATISING}::test_mean_and_covariance_of_a_release",
        f"{PRIVATISING}::test_no_attack_on_releases_beats_its_bound",
    ),
    _mutant(
        "replacing a record counts like removing it", "lightning_dp/accounting/releases.py",
        '"replace_one": 2.0', '"replace_one": 1.0',
        f"{RELEASE_ACCOUNTING}::test_the_table_of_closed_forms", fast=True,
    ),
    _mutant(
        "events of different relations add up", LEDGER, "if len(relations) > 1:", "if False:",
        f"{RELEASE_ACCOUNTING}::test_events_of_different_relations_are_not_added_up",
    ),
    _mutant(
        "randomised labels are kept too often", "lightning_dp/accounting/events.py",
        "(self.num_classes - 1) * math.exp(-self.eps)", "(self.num_classes - 1) * math.exp(-2 * self.eps)",
        f"{RELEASE_ACCOUNTING}::test_answers_alone_are_pure",
        f"{PRIVATISING}::test_frequencies_of_randomised_labels",
    ),
    _mutant(
        "labels stay as they are", f"{NEURAL}/release.py",
        "batch[key] if answer is None else randomise_labels(batch[key], answer, noise)", "batch[key]",
        f"{RELEASING}::test_randomised_labels_are_part_of_the_budget",
    ),
    _mutant(
        "randomised labels cost nothing", f"{NEURAL}/budget.py",
        "return (activations,) if self._answer is None else", "return (activations,) if True else",
        f"{RELEASING}::test_randomised_labels_are_part_of_the_budget",
    ),
    _mutant(
        "several releases cost one", f"{NEURAL}/budget.py",
        "LedgerEntry(release_event(self.noise_multiplier, self.relation), self.releases)",
        "LedgerEntry(release_event(self.noise_multiplier, self.relation), 1)",
        f"{RELEASING}::test_table_values",
    ),
    _mutant(
        "a release beyond the budget is made", f"{NEURAL}/budget.py",
        "if after > self.eps * (1.0 + 1e-9):", "if False:",
        f"{RELEASING}::test_a_release_beyond_the_budget_is_not_made",
    ),
    _mutant(
        "a release is not charged", f"{NEURAL}/training.py",
        "        self._budget.charge()  # before anything of it exists: a crash can only over-count\n", "",
        f"{RELEASING}::test_the_charge_comes_before_the_release",
    ),
    _mutant(
        "training goes through the layer itself", f"{NEURAL}/layer.py",
        "return release.to(output) if isinstance(output, Tensor) else release", "return output",
        f"{RELEASING}::test_the_head_trains_on_its_own_samples_releases",
    ),
    Mutant(
        "the raw batch takes the stand-in's place",
        (
            Edit(
                f"{NEURAL}/cache.py", "        self.dataset = range(",
                "        self.raw = user_loader.dataset\n        self.dataset = range(",
            ),
            Edit(
                f"{NEURAL}/cache.py", "            inputs = {}\n",
                "            inputs = {0: torch.stack([self.raw[i][0] for i in chosen])}\n",
            ),
        ),
        (f"{RELEASING}::test_training_sees_zeros_where_the_inputs_were",),
    ),
    _mutant(
        "trainable layers before the release pass", f"{NEURAL}/checks.py", "    if owned:\n", "    if False:\n",
        f"{RELEASING}::test_networks_that_do_not_fit_are_refused_before_anything_is_charged",
    ),
    _mutant(
        "samples may meet before the release", f"{NEURAL}/checks.py",
        "if not same_holes or error > TOLERANCE * size:", "if False:",
        f"{RELEASING}::test_networks_that_do_not_fit_are_refused_before_anything_is_charged",
    ),
    _mutant(
        "stand-ins move running statistics", f"{NEURAL}/layer.py",
        "        module.training = False\n", "        module.training = True\n",
        f"{RELEASING}::test_nothing_upstream_moves_or_gets_a_gradient",
    ),
    _mutant(
        "the noise of a release has a known seed", f"{NEURAL}/training.py",
        "noise = NoiseSource(self._seed, self.global_rank)", "noise = NoiseSource(0, self.global_rank)",
        f"{RELEASING}::test_the_seed_of_the_process_does_not_reach_the_noise",
    ),
    _mutant(
        "labels in the clear go into checkpoints", f"{NEURAL}/training.py",
        "with_labels=self._labels is not None", "with_labels=True",
        f"{RELEASING}::test_labels_in_the_clear_stay_out_of_checkpoints",
    ),
    _mutant(
        "queries with noise are not counted", f"{NEURAL}/training.py",
        "            self._inference.charge(self._budget.noise_multiplier)\n", "            pass\n",
        f"{RELEASING}::test_queries_with_noise_have_a_ledger_of_their_own",
    ),
)  # fmt: skip

ENSEMBLE = "lightning_dp/callbacks/ensemble_budget.py"
MONITOR = "lightning_dp/callbacks/monitor.py"
MEMBERS = "lightning_dp/callbacks/members.py"
MULTIPLICITY = "tests/callbacks/test_multiplicity_monitor.py"
MONITORS = "tests/callbacks/test_monitors.py"

MONITOR_FAULTS = (
    _mutant(
        "the budgets of an ensemble's members are not added", ENSEMBLE,
        "entries = Spending.merged(*known).entries", "entries = Spending.merged(known[0]).entries",
        f"{MULTIPLICITY}::test_trained_members_add_their_budgets_up",
    ),
    _mutant(
        "what members have in common is counted as one's own", ENSEMBLE,
        "            if seen & one.segments:", "            if not one.segments:",
        f"{MULTIPLICITY}::test_a_common_beginning_is_counted_once",
    ),
    _mutant(
        "a record that moves from one member's data to another's concerns one", ENSEMBLE,
        "        if relation_of(entries) != RELATION:", "        if not entries:",
        f"{MULTIPLICITY}::test_relations_do_not_add_up_and_disjoint_data_need_add_or_remove_one",
    ),
    _mutant(
        "a member without privacy is forgotten", ENSEMBLE,
        "    if len(known) < len(spendings):", "    if not known:",
        f"{MULTIPLICITY}::test_a_member_without_privacy_leaves_no_guarantee",
    ),
    _mutant(
        "an empty ledger is taken for eps = 0", ENSEMBLE,
        "        if not strategy.ledger.steps:", "        if strategy is None:",
        f"{MULTIPLICITY}::test_posterior_samples_cost_what_one_costs",
    ),
    _mutant(
        "budgets are quoted at the largest delta", ENSEMBLE,
        "min(one.delta for one in known)", "max(one.delta for one in known)",
        f"{MULTIPLICITY}::test_trained_members_add_their_budgets_up",
    ),
    _mutant(
        "the tested weights are left behind by the members", MEMBERS,
        "        module.load_state_dict(own, strict=False)\n", "",
        f"{MULTIPLICITY}::test_result_is_that_of_modules_of_their_own",
    ),
    _mutant(
        "a group without a value is dropped", MONITOR,
        "result).items() if self._is_logged(name)", "result).items() if self._is_logged(name) and value == value",
        f"{MONITORS}::test_a_group_never_seen_and_one_class_only_stay_with_their_reason",
    ),
    _mutant(
        "why a group has no value is not said", MONITOR,
        'if item.get("reason") and item.get("value", 0) is None:', 'if item.get("reason") == "":',
        f"{MONITORS}::test_a_group_never_seen_and_one_class_only_stay_with_their_reason",
    ),
    _mutant(
        "the last samples of a stage are not counted", MONITOR,
        "        self._flush(metric)\n        counts =", "        counts =",
        f"{MONITORS}::test_results_are_those_of_a_plain_loop",
    ),
    _mutant(
        "repeated samples count twice", MONITOR,
        "return found.first(max(0, own - start))", "return found",
        "tests/callbacks/test_ranks.py::test_two_ranks_say_what_one_says",
    ),
)  # fmt: skip

WORDS = "lightning_dp/report/words.py"
PAGE_TESTS = "tests/report/test_page.py"
REPORT_RUNS = "tests/callbacks/test_report.py"
REPORT_FAULTS = (
    _mutant(
        "the report rounds eps to the nearest", WORDS,
        "or math.isinf(value) else rounded_up(value)", 'or math.isinf(value) else f"{value:.4g}"',
        f"{PAGE_TESTS}::test_no_shown_eps_is_below_the_true_one",
        f"{PAGE_TESTS}::test_no_shown_delta_is_below_the_true_one",
    ),
    _mutant(
        "the report rounds an attacker's chance down", WORDS,
        "math.ceil(probability * 100 * scale * (1.0 - 1e-12))", "math.floor(probability * 100 * scale)",
        f"{PAGE_TESTS}::test_percentages_are_not_rounded_down",
    ),
    _mutant(
        "a run without noise is reported as private", "lightning_dp/report/document.py",
        "private = spent is not None and math.isfinite(spent.eps)", "private = spent is not None",
        "tests/report/test_document.py::test_a_run_without_noise_is_not_called_private",
    ),
    _mutant(
        "the relaxed attacker's chance is shown as the strongest one's", "lightning_dp/report/glance.py",
        'for row in found["rows"] if row["is_guarantee"]', 'for row in found["rows"] if not row["is_guarantee"]',
        f"{PAGE_TESTS}::test_the_table_at_a_glance_sets_a_run_beside_its_baseline",
    ),
    _mutant(
        "the report does not say that labels are unprotected", WORDS,
        'if not guarantee["labels_covered"]:', "if False:",
        f"{PAGE_TESTS}::test_labels_that_are_not_covered_are_named_beside_the_guarantee",
    ),
    _mutant(
        "no baseline's risk is a dash and not a certainty", "lightning_dp/report/glance.py",
        'if run["membership"] is None:\n        return percent(1.0)',
        'if run["membership"] is None:\n        return number(None)',
        f"{PAGE_TESTS}::test_the_table_at_a_glance_sets_a_run_beside_its_baseline",
    ),
    _mutant(
        "metrics of private batches pass for utility", "lightning_dp/callbacks/report.py",
        ' | self._training_names()\n', '\n',
        f"{REPORT_RUNS}::test_private_metrics_are_named_and_their_values_are_not_shown",
    ),
    _mutant(
        "a test in another process replaces what training reported", "lightning_dp/callbacks/report.py",
        "if not self._fitted:", "if False:",
        f"{REPORT_RUNS}::test_a_model_whose_training_was_not_seen_is_not_reported_on",
    ),
    _mutant(
        "a run without privacy is logged as safe from reconstruction", "lightning_dp/callbacks/reconstruction.py",
        "        gamma = 1.0\n", "        gamma = 0.0\n",
        "tests/callbacks/test_reconstruction.py::test_without_privacy_the_risk_is_one_and_is_said",
    ),
)  # fmt: skip

PICTURE_FAULTS: tuple[Mutant, ...] = (
    _mutant(
        "norms of the weight in use, not of the weight", "lightning_dp/gradients/rules/standardised.py",
        "squares = row_squares(self.pulled_back(gradients))", "squares = row_squares(gradients)",
        "tests/gradients/rules/test_computed_weights.py::test_standardised_convolutions_with_gains_agree",
    ),
    _mutant(
        "standardisation rounds a unit to nothing", "lightning_dp/gradients/rules/standardised.py",
        "return torch.maximum(torch.cat(norms), torch.cat(least))", "return torch.cat(norms)",
        "tests/gradients/rules/test_computed_weights.py::test_what_standardisation_takes_away_does_not_round_a_unit_to_nothing",
    ),
    _mutant(
        "gain of a standardised weight without its gradient", "lightning_dp/gradients/rules/standardised.py",
        "used = (scale * normal).view_as(weight)", "used = normal.view_as(weight)",
        "tests/gradients/rules/test_computed_weights.py::test_standardised_convolutions_with_gains_agree",
    ),
    _mutant(
        "residual blocks share a norm", "lightning_dp/models/scale_norm.py",
        "    _refuse_shared(model, found)\n", "",
        "tests/models/test_scale_norm.py::test_refusals_change_nothing",
    ),
    _mutant(
        "a picture on two sides of a split", "lightning_dp/data/emoji_categories.py",
        "one, other = root(str(base)), root(", "one, other = str(base), (",
        "tests/data/test_pictures.py::test_no_unit_and_no_picture_is_on_two_sides",
        "tests/data/test_pictures.py::test_pictures_of_one_code_point_and_equal_pictures_are_one_unit",
    ),
    _mutant(
        "views of test pictures", "lightning_dp/data/cifar.py",
        'augment=self.augment and part == "train"', "augment=self.augment",
        "tests/data/test_pictures.py::test_cifar_validation_is_held_out_and_only_training_is_moved",
    ),
    _mutant(
        "an unpickler that runs code", "lightning_dp/data/cifar.py",
        "return _ALLOWED[module, name]", "return super().find_class(module, name)",
        "tests/data/test_pictures.py::test_a_pickle_that_runs_code_is_refused_before_it_does",
    ),
)  # fmt: skip

MUTANTS: tuple[Mutant, ...] = (
    *CLIPPING_FAULTS,
    *NOISE_FAULTS,
    *LEAK_FAULTS,
    *SAMPLING_FAULTS,
    *ACCOUNTING_FAULTS,
    *MANUAL_FAULTS,
    *STRATEGY_FAULTS,
    *RISK_FAULTS,
    *ASCENT_FAULTS,
    *LANGEVIN_FAULTS,
    *NEURAL_FAULTS,
    *MONITOR_FAULTS,
    *REPORT_FAULTS,
    *PICTURE_FAULTS,
)

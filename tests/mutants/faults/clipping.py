"""Faults of clipping."""

from __future__ import annotations

from tests.mutants.fault import Edit, Mutant, mutant
from tests.mutants.places import BACKWARD, CONTRIBUTIONS, ENGINE, GENERIC, PRODUCT_SUM, ROUTES, TRAPS

__all__ = ("CLIPPING_FAULTS",)

CLIPPING = "lightning_dp/gradients/clipping.py"
SCALE = 'scale = bound / (norms + STABILITY) if self.name == "automatic" else (bound / norms).clamp(max=1.0)'
SENSITIVITY = "tests/gradients/test_sensitivity.py"
LAYERS = "tests/gradients/test_clipping.py"
ADAPTIVE = "lightning_dp/gradients/adaptive.py"
ADAPTING = "tests/gradients/test_adaptive.py"
EMBEDDING_ROWS = "lightning_dp/gradients/contributions/embedding_rows.py"
PRECISION = "lightning_dp/gradients/precision.py"

CLIPPING_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "no clipping", CLIPPING, SCALE, "scale = torch.ones_like(norms)",
        f"{TRAPS}::test_t1_every_sample_is_clipped_by_itself", fast=True,
    ),
    mutant(
        "the mean is clipped and not the unit", ENGINE,
        "self.clipping.coefficients(squares * scale**2)", "self.clipping.coefficients(squares)",
        f"{TRAPS}::test_t1_every_sample_is_clipped_by_itself",
    ),
    mutant(
        "loss reduction forgotten", ENGINE,
        "scale = units.loss_scale(self.loss_reduction)", "scale = 1.0",
        f"{ROUTES}::test_sum_reduction_equals_mean_reduction",
    ),
    mutant(
        "each layer gets the whole bound", CLIPPING,
        "[self.max_grad_norm / math.sqrt(num_groups)] * num_groups", "[self.max_grad_norm] * num_groups",
        f"{SENSITIVITY}::test_unused_branch_and_per_layer_bounds",
    ),
    mutant(
        "the sensitivity of several layers is that of the largest", CLIPPING,
        "math.hypot(*(bound for _, bound in layers)) if bounded", "max(bound for _, bound in layers) if bounded",
        f"{LAYERS}::test_the_noise_follows_the_root_of_the_sum_of_squares",
    ),
    mutant(
        "a layer without a bound is let through", CLIPPING,
        "            elif parameter in taking_part:\n", "            elif False:\n",
        f"{LAYERS}::test_nothing_is_left_without_a_bound",
    ),
    mutant(
        "the count's share of the privacy is forgotten", ADAPTIVE,
        "return float(left**-0.5)", "return noise_multiplier",
        f"{ADAPTING}::test_gradients_and_count_together_are_the_nominal_mechanism",
    ),
    mutant(
        "the count is not centred", ADAPTIVE, "below.to(torch.float32) - BIT", "below.to(torch.float32)",
        f"{ADAPTING}::test_one_unit_moves_the_pair_by_at_most_what_is_accounted",
    ),
    mutant(
        "the count has no noise", ADAPTIVE, "        if rank == 0:  # once over all ranks", "        if False:",
        f"{ADAPTING}::test_the_count_gets_its_own_noise",
    ),
    mutant(
        "the threshold moves within a step", ENGINE,
        "self.threshold.observe((squares * scale**2).sum(0), weights)\n",
        "self.threshold.observe((squares * scale**2).sum(0), weights)\n"
        "            self.clipping = Clipping(1.0)\n",
        f"{ADAPTING}::test_physical_batches_share_one_threshold_and_one_count",
    ),
    mutant(
        "a unit that is not finite is kept", CLIPPING,
        "finite = torch.isfinite(squared_norms.sum(0))", "finite = torch.ones_like(squared_norms[0], dtype=torch.bool)",
        f"{TRAPS}::test_t8_one_sample_that_is_not_finite_neither_destroys_nor_shows", fast=True,
    ),
    mutant(
        "weight zero times infinity", ENGINE,
        "contribution if everything_finite else contribution.keep(finite)", "contribution",
        f"{TRAPS}::test_t8_one_sample_that_is_not_finite_neither_destroys_nor_shows",
    ),
    mutant(
        "norms of the parts for layers used twice", BACKWARD,
        "self._norms[parameter], kept[parameter] = joint_squared_norms(uses)",
        "self._norms[parameter] = torch.stack([use.squared_norms() for use in uses]).sum(0)",
        f"{ROUTES}::test_network_matches_plain_loop",
    ),
    mutant(
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
    mutant(
        "several physical batches: only the last one counts", ENGINE,
        "        self._buffers()\n        group, ", "        self._forget_sums()\n        self._buffers()\n        group, ",
        f"{TRAPS}::test_t6_physical_batches_add_up",
    ),
    mutant(
        "one buffer for two layers", PRODUCT_SUM,
        "held = self.a.new_empty(self.num_units, self.shape.numel())",
        "held = self._memory.scratch((self.num_units, self.shape.numel()), self.a)",
        f"{ROUTES}::test_held_gradients_of_two_layers_do_not_meet",
    ),
    mutant(
        "cancellation is not repaired", BACKWARD, "            self._repair()\n", "",
        f"{ROUTES}::test_cancelling_terms_are_repaired_by_the_engine",
    ),
    mutant(
        "weights are not checked", ENGINE,
        "        check_weights(weights, units)\n", "",
        f"{SENSITIVITY}::test_weights_that_would_break_the_bound_are_refused",
    ),
    mutant(
        "long sums of squares stagnate", CONTRIBUTIONS,
        "whole = flat.shape[1] - rest", "whole = 0",
        f"{SENSITIVITY}::test_the_norm_of_many_like_terms_is_not_rounded_down",
    ),
    mutant(
        "terms that cancel count for what is left", PRODUCT_SUM,
        "return torch.maximum(norms + lost, least)", "return norms + lost",
        f"{ROUTES}::test_no_route_counts_a_unit_as_smaller_than_its_terms_resolve",
        f"{SENSITIVITY}::test_positions_that_cancel_do_not_round_the_others_away",
        f"{SENSITIVITY}::test_patches_that_cancel_do_not_round_the_others_away",
    ),
    mutant(
        "tokens that cancel round the others away", EMBEDDING_ROWS,
        "        unit, index, rows = self._rows()\n",
        "        unit = torch.arange(self.num_units).unsqueeze(1).expand_as(self.index).flatten()\n"
        "        index, rows = self.index.flatten(), self.b.flatten(0, 1)\n",
        f"{SENSITIVITY}::test_a_token_that_cancels_itself_does_not_round_the_others_away",
    ),
    mutant(
        "squares that underflow", PRODUCT_SUM, "LOST = 2.0**-126", "LOST = 0.0",
        f"{SENSITIVITY}::test_a_huge_input_times_a_vanishing_gradient_is_seen",
    ),
    mutant(
        "low matmul precision reaches the norms", PRECISION, "right = all(", "right = True or all(",
        f"{SENSITIVITY}::test_low_matmul_precision_does_not_reach_norms_and_sums",
    ),
    mutant(
        "ragged units padded with zeros", GENERIC,
        "split = [units.by_unit(t.detach(), name, repeat=True)", "split = [units.by_unit(t.detach(), name)",
        f"{SENSITIVITY}::test_a_unit_of_any_number_of_rows_moves_the_sum_by_at_most_the_bound",
    ),
)  # fmt: skip  # fmt: skip

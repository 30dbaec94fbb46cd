"""Faults of ways around the private gradient."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import BACKWARD, ENGINE, GENERIC, NOISE, NOISES, PRODUCT_SUM, ROUTES, TAP, TAPS, UNITS

__all__ = ("LEAK_FAULTS",)

LEAKS = "tests/gradients/test_leaks.py"
REPLAY = "lightning_dp/gradients/replay.py"
RULES = "tests/gradients/rules"
ROW_MEMORY = "lightning_dp/gradients/row_memory.py"
GRAPHS = "tests/gradients/test_graphs.py"
WHOLE_BATCH = "lightning_dp/gradients/whole_batch.py"
SHARED = "tests/gradients/test_shared.py"

LEAK_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "leaks are not looked for", ENGINE, "            self._refuse_leaks()\n", "",
        f"{LEAKS}::test_a_weight_used_outside_its_module_is_refused_by_name",
    ),
    mutant(
        "layers that join later are not looked for", ENGINE, "untapped = self._taps.untapped()", "untapped = []",
        f"{LEAKS}::test_a_layer_that_joins_later_is_refused_by_name",
    ),
    mutant(
        "samples that meet in a small part of the network", "lightning_dp/strategies/selfcheck.py",
        "if error > self.tolerance else self._coupled_part(one, other)", "if error > self.tolerance else None",
        "tests/strategies/test_selfcheck.py::test_is_stopped_before_the_first_step",
    ),
    mutant(
        "norms taken as safe from cancellation unseen", PRODUCT_SUM,
        "if self.nothing_cancels(norms):", "if True:",
        f"{ROUTES}::test_no_route_counts_a_unit_as_smaller_than_its_terms_resolve",
    ),
    mutant(
        "noise whose square underflows", NOISE, "radius *= np.float32(-2)\n",
        "radius *= np.float32(-2 * std**2)\n        std = 1.0\n",
        f"{NOISES}::test_sizes_whose_squares_float32_cannot_hold_are_kept",
    ),
    mutant(
        "changed inputs are not noticed", TAP, "ctx.save_for_backward(record.inputs[0][0])",
        "ctx.save_for_backward(record.inputs[0][0].data)",
        f"{LEAKS}::test_an_input_changed_after_use_is_refused_by_name",
    ),
    mutant(
        "the generic rule trusts its repetition", GENERIC,
        "    if not all(reproduces(", "    if False and not all(reproduces(",
        f"{LEAKS}::test_a_leaf_that_couples_its_rows_is_refused_by_name",
    ),
    mutant(
        "every repetition passes for the recorded call", REPLAY,
        "return bool((difference <= tolerance * scale).all())", "return True",
        f"{RULES}/test_attention.py::test_masks_that_cannot_be_drawn_again_are_refused_by_name",
    ),
    mutant(
        "a recurrent layer's dropout masks are taken on trust", "lightning_dp/gradients/rules/recurrent.py",
        "if not all(reproduces(", "if False and not all(reproduces(",
        f"{RULES}/test_recurrent.py::test_masks_that_cannot_be_drawn_again_are_refused_by_name",
    ),
    mutant(
        "time steps of a transformer are taken for rows", TAP,
        "record.batch_first() if record.module in taps.sequence_first else record", "record",
        f"{RULES}/test_attention.py::test_an_encoder_agrees_in_every_batch_size",
    ),
    mutant(
        "a recurrent layer's time axis is taken for the batch", BACKWARD,
        "grad.shape[0] if record.rows is None else record.rows(record.module, args, kwargs)", "grad.shape[0]",
        f"{RULES}/test_recurrent.py::test_any_recurrent_layer_agrees",
    ),
    mutant(
        "rows of an earlier pass are taken for this one's", TAP,
        "if ctx.used or ctx.generation != taps.generation:", "if False:",
        f"{LEAKS}::test_a_loss_that_reaches_back_to_earlier_rows_is_refused",
    ),
    mutant(
        "an axis that is not the batch's goes unnoticed", ROW_MEMORY,
        "        if not left:\n", "        if False:\n",
        f"{UNITS}::test_a_wrong_axis_that_divides_evenly_is_caught_when_the_batch_size_changes",
    ),
    mutant(
        "nodes are taken for edges where their numbers agree", ROW_MEMORY,
        "if others and not self._agree(", "if False and not self._agree(",
        f"{GRAPHS}::test_equal_numbers_of_nodes_and_edges_are_refused_while_nothing_told_them_apart",
    ),
    mutant(
        "a graph that is not finite reaches the others", WHOLE_BATCH,
        "if not all(bool(torch.isfinite(g).all()) for g in gradients):", "if False:",
        f"{GRAPHS}::test_a_graph_that_is_not_finite_spares_the_others",
    ),
    mutant(
        "a norm over all graphs goes unnoticed", WHOLE_BATCH,
        "(rows * foreign).max() > APART", "(rows * foreign).max() > 1e9 + APART",
        f"{GRAPHS}::test_a_norm_without_the_batch_vector_is_refused",
    ),
    mutant(
        "positions shared by the batch are taken for samples", ROW_MEMORY,
        "                self._shared.add((name, call))\n", "                return False\n",
        f"{SHARED}::test_matches_the_loop_at_every_batch_size",
    ),
    mutant(
        "what the batch shares is split in batches of its length", ROW_MEMORY,
        "= found & self._with_rows.get(key, found)", "= found",
        f"{SHARED}::test_matches_the_loop_at_every_batch_size",
    ),
    mutant(
        "the second pass of an ascent splits what the batch shares", "lightning_dp/gradients/ascent/shift.py",
        "carried = self.row_memory.with_rows(name, number,", "carried = RowMemory().with_rows(name, number,",
        "tests/gradients/ascent/test_passes.py::test_what_the_batch_shares_is_shared_in_the_second_pass_too",
    ),
    mutant(
        "a single sample's channels are taken for rows", "lightning_dp/gradients/rules/registry.py",
        "        if not has_batch:\n", "        if False:\n",
        f"{RULES}/test_unbatched.py::test_a_call_without_batch_axis_is_refused_by_name",
    ),
    mutant(
        "copies keep live taps", TAPS, "    taps._paused = True\n    return taps", "    return taps",
        f"{LEAKS}::test_a_copy_of_a_tapped_network_is_an_ordinary_network",
    ),
)  # fmt: skip  # fmt: skip

"""Faults of noise and the step."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant
from tests.mutants.places import ENGINE, NOISE, NOISES, TRAPS

__all__ = ("NOISE_FAULTS",)

NOISE_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "noise halved", ENGINE,
        "self.gradient_noise_multiplier * sensitivity", "0.5 * self.gradient_noise_multiplier * sensitivity",
        f"{NOISES}::test_scale_follows_the_clipping_and_the_public_batch_size", fast=True,
    ),
    mutant(
        "noise with every physical batch", ENGINE,
        "        weights_of = coefficients.unbind()\n",
        "        weights_of = coefficients.unbind()\n"
        "        for total in self._sums.values():\n"
        "            self.noise.add_(total, self.noise_multiplier * self.clipping.sensitivity)\n",
        f"{NOISES}::test_noise_comes_once_per_logical_step",
    ),
    mutant(
        "no noise on an empty step", ENGINE,
        "            self.noise.add_(flat[start:stop]", "            if self._bound: self.noise.add_(flat[start:stop]",
        f"{NOISES}::test_noise_comes_once_per_logical_step",
    ),
    mutant(
        "no noise where no gradient arrived", ENGINE,
        "            self.noise.add_(flat[start:stop], self.gradient_noise_multiplier * sensitivity)\n",
        "            touched = (flat != 0).to(flat)\n"
        "            self.noise.add_(flat[start:stop], self.gradient_noise_multiplier * sensitivity)\n"
        "            flat.mul_(touched)\n",
        f"{NOISES}::test_parameters_without_a_gradient_get_noise_too",
    ),
    mutant(
        "every rank adds the whole noise", ENGINE, "self.noise.add_(flat[start:stop]", "self.noise.add_(flat",
        f"{NOISES}::test_the_sum_over_ranks_has_the_size_of_one_draw",
    ),
    mutant(
        "only the first rank's slice is noised", ENGINE, "self.noise.add_(flat[start:stop]",
        "self.noise.add_(flat[start:stop] if rank == 0 else flat[:0]",
        f"{NOISES}::test_every_coordinate_gets_exactly_one_draw_over_all_ranks",
    ),
    mutant(
        "mean over ranks", "lightning_dp/strategies/processes.py",
        "op=torch.distributed.ReduceOp.SUM)\n        return tensor",
        "op=torch.distributed.ReduceOp.SUM)\n        return tensor / self.world_size",
        f"{TRAPS}::test_t7_ranks_are_summed_and_not_averaged",
    ),
    mutant(
        "noise from torch's global generator", NOISE, "secrets.randbits(256)", "torch.initial_seed()",
        f"{NOISES}::test_global_seeds_do_not_reach_the_noise",
    ),
    mutant(
        "the last block of noise is left out", NOISE, "range(0, len(samples), BLOCK)", "range(0, len(samples) - BLOCK, BLOCK)",
        f"{NOISES}::test_blocks_are_independent",
    ),
    mutant(
        "noise rounded to bfloat16", NOISE,
        "samples[:pairs] += cosine\n", "samples[:pairs] += torch.from_numpy(cosine).bfloat16().float().numpy()\n",
        f"{TRAPS}::test_t14_noise_is_drawn_in_single_precision",
        f"{NOISES}::test_noise_is_float32_under_bfloat16_autocast",
    ),
    mutant(
        "bound changed without its noise", ENGINE,
        "sensitivity = max(self._bound, self.clipping.sensitivity)", "sensitivity = self.clipping.sensitivity",
        f"{TRAPS}::test_t2_the_bound_and_the_noise_are_one_fact",
    ),
    mutant(
        "realised batch size as denominator", ENGINE,
        "        self._bound = max(self._bound, self.clipping.sensitivity)\n",
        "        self._bound = max(self._bound, self.clipping.sensitivity)\n"
        "        self.expected_batch_size = float(units.num_units)\n",
        f"{TRAPS}::test_t10_the_rate_is_batch_over_n_and_the_denominator_is_public",
    ),
)  # fmt: skip  # fmt: skip

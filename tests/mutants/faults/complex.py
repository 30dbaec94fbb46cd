"""Faults of complex numbers."""

from __future__ import annotations

from tests.mutants.fault import Edit, Mutant, mutant
from tests.mutants.places import BACKWARD, ENGINE, TAPS, TRAPS

__all__ = ("COMPLEX_FAULTS",)

COMPLEX = "tests/gradients/test_complex.py"
COMPLEX_LOOP = f"{COMPLEX}::test_clipped_sum_is_that_of_a_plain_loop"
WRITTEN = "                parameter.grad = like_parameter(gradient, parameter)"
COMPLEX_NOISE = f"{COMPLEX}::test_each_real_part_gets_the_full_noise"

COMPLEX_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "a complex linear layer's input is not conjugated", "lightning_dp/gradients/rules/linear.py",
        "call.x.conj_physical()", "call.x", COMPLEX_LOOP,
        f"{TRAPS}::test_t16_complex_parameters_are_conjugated_and_noised_on_both_parts",
    ),
    mutant(
        "a complex convolution's input is not conjugated", "lightning_dp/gradients/rules/conv.py",
        "geometry.pad(call.x.conj_physical())", "geometry.pad(call.x)", COMPLEX_LOOP,
    ),
    mutant(
        "a transposed complex convolution's input is not conjugated", "lightning_dp/gradients/rules/conv_transpose.py",
        "x.conj_physical()", "x", COMPLEX_LOOP,
    ),
    mutant(
        "a rule for real numbers serves complex ones", TAPS,
        "rule = None  # which it was not written for", "rule = site.rule  # which it was not written for",
        f"{COMPLEX}::test_rules_for_real_numbers_are_not_used_for_complex_ones",
    ),
    mutant(
        "a gradient that lacks its parameter's imaginary part passes", BACKWARD,
        "if contribution.shape != real_shape(parameter):", "if False:",
        f"{COMPLEX}::test_a_rule_that_mixes_up_real_and_complex_is_refused",
    ),
    mutant(
        "the norm leaves out imaginary parts", BACKWARD,
        "return contribution.squared_norms()",
        "return torch.stack([(g[..., 0] if g.shape[-1:] == (2,) else g).square().sum() for g in contribution.all_units()])",
        f"{COMPLEX}::test_a_network_is_its_real_twin", COMPLEX_LOOP,
    ),
    mutant(
        "the product of complex factors leaves out one of its terms", "lightning_dp/gradients/reals.py",
        "torch.cat([b.real, b.imag], position)", "torch.cat([b.real, 0 * b.imag], position)",
        f"{COMPLEX}::test_real_factors_have_the_parts_of_the_complex_product",
    ),
    mutant(
        "the noise on complex parameters has the deviation sigma C in all, and not on each part", ENGINE,
        WRITTEN, WRITTEN.replace("gradient,", "gradient * (0.5**0.5 if parameter.is_complex() else 1.0),"),
        COMPLEX_NOISE, f"{COMPLEX}::test_noise_on_complex_parameters_is_circular",
    ),
    Mutant(
        "imaginary parts get no noise",
        (
            Edit(ENGINE, "rank, world_size = shard\n", "(rank, world_size), clean = shard, views(flat.clone(), group)\n"),
            Edit(
                ENGINE, WRITTEN,
                "                if parameter.is_complex():\n"
                "                    gradient[..., 1] = clean[[p is parameter for p in group].index(True)][..., 1]\n" + WRITTEN,
            ),
        ),
        (COMPLEX_NOISE, f"{COMPLEX}::test_noise_on_complex_parameters_is_circular"),
    ),
    mutant(
        "leaks to complex parameters are not watched", TAPS,
        "if carries_gradient(parameter) and (only", "if parameter.is_floating_point() and (only",
        f"{COMPLEX}::test_a_gradient_round_the_taps_is_found",
    ),
    mutant(
        "bias-aware ascent moves complex layers as if they were real", "lightning_dp/gradients/ascent/shift.py",
        "        _refuse_complex(call.name, outputs, call.trainable.values())\n", "",
        f"{COMPLEX}::test_bias_aware_ascent_is_refused_by_name",
    ),
    mutant(
        "a whitening norm's matrix is taken to act on what was not whitened", "lightning_dp/gradients/rules/complex_norm.py",
        "module.positions(module.normalised(call.x))", "module.positions(call.x)",
        "tests/models/test_complex.py::test_norms_whiten_within_a_sample_and_agree_with_a_plain_loop",
    ),
    mutant(
        "a deviation of the complex number is taken for one of each part", "lightning_dp/accounting/complex_noise.py",
        "noise_multiplier / math.sqrt(2.0)", "noise_multiplier",
        "tests/accounting/test_complex_noise.py::test_the_best_attack_on_complex_noise_has_the_power_that_the_index_says",
    ),
    mutant(
        "complex rows go into a release without their imaginary parts", "lightning_dp/strategies/neural/privatise.py",
        "    if rows.is_complex():", "    if False:",
        "tests/strategies/test_complex_mechanisms.py::test_a_complex_layer_or_input_is_not_released",
    ),
    mutant(
        "unit power is that of the batch", "lightning_dp/models/complex/fourier.py",
        "power = z.abs().square().flatten(1).mean(1)", "power = z.abs().square().mean().expand(len(z))",
        "tests/models/test_kspace.py::test_unit_power_is_blind_to_gain_and_to_the_other_samples",
    ),
    mutant(
        "the objects of all samples share their size", "lightning_dp/models/complex/fourier.py",
        "share = weights.mean((2, 3), keepdim=True)", "share = weights.mean((0, 2, 3), keepdim=True)",
        "tests/models/test_kspace.py::test_no_sample_sees_another",
    ),
    mutant(
        "contrast histograms are centred on the batch", "lightning_dp/models/complex/histogram.py",
        "(self._histograms(part) - self.centre)", "(self._histograms(part) - self._histograms(part).mean(0))",
        "tests/models/test_histogram.py::test_no_scan_sees_another_nor_its_own_gain_or_global_phase",
    ),
)  # fmt: skip

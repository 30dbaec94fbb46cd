"""Faults of image networks and their data."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("PICTURE_FAULTS",)

PICTURE_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "norms of the weight in use, not of the weight", "lightning_dp/gradients/rules/standardised.py",
        "left = whole - (sums.square() + products.square() * share).sum(1) / d", "left = whole",
        "tests/gradients/rules/test_computed_weights.py::test_standardised_convolutions_with_gains_agree",
    ),
    mutant(
        "standardisation rounds a unit to nothing", "lightning_dp/gradients/rules/standardised.py",
        "norms = used.never_below_rounding(norms)", "pass",
        "tests/gradients/rules/test_computed_weights.py::test_what_standardisation_takes_away_does_not_round_a_unit_to_nothing",
    ),
    mutant(
        "a norm is a difference of rounded numbers", "lightning_dp/gradients/rules/standardised.py",
        "self.doubtful = hidden > HIDDEN * left", "self.doubtful = hidden > whole",
        "tests/gradients/rules/test_computed_weights.py::test_a_norm_that_is_a_difference_keeps_its_digits",
    ),
    mutant(
        "units side by side lie in the wrong order", "lightning_dp/gradients/rules/conv.py",
        "(t.transpose(0, 1).flatten(1, 2) for t in (x, grad))",
        "(t.reshape(t.shape[1], -1, *t.shape[3:]) for t in (x, grad))",
        "tests/gradients/rules/test_conv.py::test_every_way_to_the_units_gradients_agrees",
    ),
    mutant(
        "outputs of a standardised weight that were changed in place are used", "lightning_dp/gradients/tap.py",
        "ctx.save_for_backward(result)", "kept.append(result)",
        "tests/gradients/rules/test_computed_weights.py::test_outputs_are_used_where_they_are_what_they_were",
    ),
    mutant(
        "a pair of pixels is left out of the patches", "lightning_dp/gradients/rules/pixel_gram.py",
        "min(length, size - shift))", "min(length, size - shift - 1))",
        "tests/gradients/rules/test_pixel_gram.py::test_the_matrix_is_that_of_the_patches",
    ),
    mutant(
        "phases of the input are taken at the wrong place", "lightning_dp/gradients/rules/pixel_gram.py",
        "slice(o, o + (n + tap - 2) * s + 1, s)", "slice(0, (n + tap - 2) * s + 1, s)",
        "tests/gradients/rules/test_pixel_gram.py::test_the_matrix_is_that_of_the_patches",
    ),
    mutant(
        "gain of a standardised weight without its gradient", "lightning_dp/gradients/rules/standardised.py",
        "StandardisedGain(weights, scale / factor", "StandardisedGain(weights, 1 / factor",
        "tests/gradients/rules/test_computed_weights.py::test_standardised_convolutions_with_gains_agree",
    ),
    mutant(
        "residual blocks share a norm", "lightning_dp/models/scale_norm.py",
        "    _refuse_shared(model, found)\n", "",
        "tests/models/test_scale_norm.py::test_refusals_change_nothing",
    ),
    mutant(
        "a picture on two sides of a split", "lightning_dp/data/emoji_categories.py",
        "one, other = root(str(base)), root(", "one, other = str(base), (",
        "tests/data/test_pictures.py::test_no_unit_and_no_picture_is_on_two_sides",
        "tests/data/test_pictures.py::test_pictures_of_one_code_point_and_equal_pictures_are_one_unit",
    ),
    mutant(
        "views of test pictures", "lightning_dp/data/cifar.py",
        'augment=self.augment and part == "train"', "augment=self.augment",
        "tests/data/test_pictures.py::test_cifar_validation_is_held_out_and_only_training_is_moved",
    ),
    mutant(
        "an unpickler that runs code", "lightning_dp/data/cifar.py",
        "return _ALLOWED[module, name]", "return super().find_class(module, name)",
        "tests/data/test_pictures.py::test_a_pickle_that_runs_code_is_refused_before_it_does",
    ),
    mutant(
        "a chest X-ray that is listed twice is two people", "lightning_dp/data/chest_xray/folder.py",
        "if before := self.taken.get(found[0]):", "if False and (before := self.taken.get(found[0])):",
        "tests/data/chest_xray/test_folder.py::test_a_table_that_cannot_be_right_is_refused",
    ),
)  # fmt: skip  # fmt: skip

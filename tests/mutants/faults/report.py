"""Faults of the report."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("REPORT_FAULTS",)

WORDS = "lightning_dp/report/words.py"
PAGE_TESTS = "tests/report/test_page.py"
REPORT_RUNS = "tests/callbacks/test_report.py"

REPORT_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "the report rounds eps to the nearest", WORDS,
        "or math.isinf(value) else rounded_up(value)", 'or math.isinf(value) else f"{value:.4g}"',
        f"{PAGE_TESTS}::test_no_shown_eps_is_below_the_true_one",
        f"{PAGE_TESTS}::test_no_shown_delta_is_below_the_true_one",
    ),
    mutant(
        "the report rounds an attacker's chance down", WORDS,
        "math.ceil(probability * 100 * scale * (1.0 - 1e-12))", "math.floor(probability * 100 * scale)",
        f"{PAGE_TESTS}::test_percentages_are_not_rounded_down",
    ),
    mutant(
        "a run without noise is reported as private", "lightning_dp/report/document.py",
        "private = spent is not None and math.isfinite(spent.eps)", "private = spent is not None",
        "tests/report/test_document.py::test_a_run_without_noise_is_not_called_private",
    ),
    mutant(
        "the relaxed attacker's chance is shown as the strongest one's", "lightning_dp/report/glance.py",
        'for row in found["rows"] if row["is_guarantee"]', 'for row in found["rows"] if not row["is_guarantee"]',
        f"{PAGE_TESTS}::test_the_table_at_a_glance_sets_a_run_beside_its_baseline",
    ),
    mutant(
        "the report does not say that labels are unprotected", WORDS,
        'if not guarantee["labels_covered"]:', "if False:",
        f"{PAGE_TESTS}::test_labels_that_are_not_covered_are_named_beside_the_guarantee",
    ),
    mutant(
        "no baseline's risk is a dash and not a certainty", "lightning_dp/report/glance.py",
        'if run["membership"] is None:\n        return percent(1.0)',
        'if run["membership"] is None:\n        return number(None)',
        f"{PAGE_TESTS}::test_the_table_at_a_glance_sets_a_run_beside_its_baseline",
    ),
    mutant(
        "metrics of private batches pass for utility", "lightning_dp/callbacks/report.py",
        ' | self._training_names()\n', '\n',
        f"{REPORT_RUNS}::test_private_metrics_are_named_and_their_values_are_not_shown",
    ),
    mutant(
        "a test in another process replaces what training reported", "lightning_dp/callbacks/report.py",
        "if not self._fitted:", "if False:",
        f"{REPORT_RUNS}::test_a_model_whose_training_was_not_seen_is_not_reported_on",
    ),
    mutant(
        "a run without privacy is logged as safe from reconstruction", "lightning_dp/callbacks/reconstruction.py",
        "        gamma = 1.0\n", "        gamma = 0.0\n",
        "tests/callbacks/test_reconstruction.py::test_without_privacy_the_risk_is_one_and_is_said",
    ),
)  # fmt: skip  # fmt: skip

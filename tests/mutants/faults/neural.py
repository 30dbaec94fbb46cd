"""Faults of the privatised activations."""

from __future__ import annotations

from tests.mutants.fault import Edit, Mutant, mutant
from tests.mutants.places import LEDGER

__all__ = ("NEURAL_FAULTS",)

NEURAL = "lightning_dp/strategies/neural"
PRIVATISING = "tests/strategies/neural/test_privatise.py"
RELEASE_ACCOUNTING = "tests/accounting/test_releases.py"
RELEASING = "tests/strategies/test_neural_dp.py"

NEURAL_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "activations are released unclipped", f"{NEURAL}/privatise.py",
        "scale = torch.minimum(largest, bound * _ROUNDING / unit.norm(dim=1, keepdim=True).clamp_min(1.0))",
        "scale = largest",
        f"{PRIVATISING}::test_no_row_is_longer_than_the_bound",
    ),
    mutant(
        "a release gets half its noise", f"{NEURAL}/privatise.py",
        "noise_multiplier * bound)", "noise_multiplier * bound / 2)",
        f"{PRIVATISING}::test_mean_and_covariance_of_a_release",
        f"{PRIVATISING}::test_no_attack_on_releases_beats_its_bound",
    ),
    mutant(
        "replacing a record counts like removing it", "lightning_dp/accounting/releases.py",
        '"replace_one": 2.0', '"replace_one": 1.0',
        f"{RELEASE_ACCOUNTING}::test_the_table_of_closed_forms", fast=True,
    ),
    mutant(
        "events of different relations add up", LEDGER, "if len(relations) > 1:", "if False:",
        f"{RELEASE_ACCOUNTING}::test_events_of_different_relations_are_not_added_up",
    ),
    mutant(
        "randomised labels are kept too often", "lightning_dp/accounting/events.py",
        "(self.num_classes - 1) * math.exp(-self.eps)", "(self.num_classes - 1) * math.exp(-2 * self.eps)",
        f"{RELEASE_ACCOUNTING}::test_answers_alone_are_pure",
        f"{PRIVATISING}::test_frequencies_of_randomised_labels",
    ),
    mutant(
        "labels stay as they are", f"{NEURAL}/release.py",
        "batch[key] if answer is None else randomise_labels(batch[key], answer, noise)", "batch[key]",
        f"{RELEASING}::test_randomised_labels_are_part_of_the_budget",
    ),
    mutant(
        "randomised labels cost nothing", f"{NEURAL}/budget.py",
        "return (activations,) if self._answer is None else", "return (activations,) if True else",
        f"{RELEASING}::test_randomised_labels_are_part_of_the_budget",
    ),
    mutant(
        "several releases cost one", f"{NEURAL}/budget.py",
        "LedgerEntry(release_event(self.noise_multiplier, self.relation), self.releases)",
        "LedgerEntry(release_event(self.noise_multiplier, self.relation), 1)",
        f"{RELEASING}::test_table_values",
    ),
    mutant(
        "a release beyond the budget is made", f"{NEURAL}/budget.py",
        "if after > self.eps * (1.0 + 1e-9):", "if False:",
        f"{RELEASING}::test_a_release_beyond_the_budget_is_not_made",
    ),
    mutant(
        "a release is not charged", f"{NEURAL}/training.py",
        "        self._budget.charge()  # before anything of it exists: a crash can only over-count\n", "",
        f"{RELEASING}::test_the_charge_comes_before_the_release",
    ),
    mutant(
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
    mutant(
        "trainable layers before the release pass", f"{NEURAL}/checks.py", "    if owned:\n", "    if False:\n",
        f"{RELEASING}::test_networks_that_do_not_fit_are_refused_before_anything_is_charged",
    ),
    mutant(
        "samples may meet before the release", f"{NEURAL}/checks.py",
        "if not same_holes or error > TOLERANCE * size:", "if False:",
        f"{RELEASING}::test_networks_that_do_not_fit_are_refused_before_anything_is_charged",
    ),
    mutant(
        "stand-ins move running statistics", f"{NEURAL}/layer.py",
        "        module.training = False\n", "        module.training = True\n",
        f"{RELEASING}::test_nothing_upstream_moves_or_gets_a_gradient",
    ),
    mutant(
        "the noise of a release has a known seed", f"{NEURAL}/training.py",
        "noise = NoiseSource(self._seed, self.global_rank)", "noise = NoiseSource(0, self.global_rank)",
        f"{RELEASING}::test_the_seed_of_the_process_does_not_reach_the_noise",
    ),
    mutant(
        "labels in the clear go into checkpoints", f"{NEURAL}/training.py",
        "with_labels=self._labels is not None", "with_labels=True",
        f"{RELEASING}::test_labels_in_the_clear_stay_out_of_checkpoints",
    ),
    mutant(
        "queries with noise are not counted", f"{NEURAL}/training.py",
        "            self._inference.charge(self._budget.noise_multiplier)\n", "            pass\n",
        f"{RELEASING}::test_queries_with_noise_have_a_ledger_of_their_own",
    ),
)  # fmt: skip  # fmt: skip

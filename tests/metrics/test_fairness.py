"""Fairness measures against fairlearn, scikit-learn and plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lightning_dp.metrics import Fairness, FairnessResult, Groups, wilson_interval
from lightning_dp.metrics.functional import Outcomes, aurocs_from_cells, fairness
from tests.metrics.helpers import GROUPS, Data, data

few, fewer = settings(max_examples=25), settings(max_examples=10)
seeds = st.integers(0, 10_000)


def measured(d: Data, groups: Groups = GROUPS, **options: Any) -> FairnessResult:
    return fairness(d.probs, d.targets, d.groups, groups, d.outcomes, **options)


def complete(d: Data) -> bool:
    """Whether every group has positives and negatives, so that fairlearn and we agree on what exists."""
    return all(len(torch.unique(d.targets[d.cells == g])) == 2 for g in range(6))


@fewer
@given(seed=seeds, n=st.integers(100, 300))
def test_parity_is_that_of_fairlearn(seed: int, n: int) -> None:
    theirs = pytest.importorskip("fairlearn.metrics")
    d = data("binary", n, seed)
    if not complete(d):
        return
    result = measured(d, n_boot=0)
    given_ = {
        "y_true": d.targets.numpy(),
        "y_pred": (d.probs > 0.5).long().numpy(),
        "sensitive_features": d.cells.numpy(),
    }
    for ours, name in (
        ("demographic_parity_difference", "demographic_parity_difference"),
        ("demographic_parity_ratio", "demographic_parity_ratio"),
        ("equal_opportunity_difference", "equal_opportunity_difference"),
        ("equalized_odds_difference", "equalized_odds_difference"),
        ("accuracy_difference", "accuracy_score_difference"),
    ):
        assert result.gap(ours).value == pytest.approx(getattr(theirs, name)(**given_), abs=1e-12), ours
    frame = theirs.MetricFrame(
        metrics={
            "selection_rate": theirs.selection_rate,
            "tpr": theirs.true_positive_rate,
            "fpr": theirs.false_positive_rate,
        },
        **given_,
    )
    for g, row in enumerate(result.rows):
        for name in ("selection_rate", "tpr", "fpr"):
            assert getattr(row.outcomes[0], name).value == pytest.approx(frame.by_group.loc[g, name], abs=1e-12)


@fewer
@given(seed=seeds, n=st.integers(60, 200), task=st.sampled_from(["multiclass", "multilabel"]))
def test_several_outcomes_are_one_against_the_rest(seed: int, n: int, task: str) -> None:
    theirs = pytest.importorskip("fairlearn.metrics")
    d = data(task, n, seed, classes=3)
    result = measured(d, n_boot=0)
    predicted = d.outcomes.one_hot(d.outcomes.decisions(d.probs))
    truth = d.outcomes.one_hot(d.outcomes.targets(d.targets))
    if len(torch.unique(d.cells)) < 6:
        return
    for k, name in enumerate(result.outcomes):
        gap = result.gap("demographic_parity_difference", name).value
        expected = theirs.demographic_parity_difference(
            truth[:, k].numpy(), predicted[:, k].numpy(), sensitive_features=d.cells.numpy()
        )
        assert gap == pytest.approx(expected, abs=1e-12)
    for g, row in enumerate(result.rows):
        right = (predicted == truth)[d.cells == g].double()
        each = right.mean(1) if task == "multilabel" else right.amin(1)
        assert row.accuracy.value == pytest.approx(float(each.mean()), abs=1e-12)


@few
@given(seed=seeds, n=st.integers(1, 300), ties=st.booleans())
def test_auroc_is_that_of_scikit_learn_within_the_stated_error(seed: int, n: int, ties: bool) -> None:
    d = data("binary", n, seed, ties=ties)
    for g, row in enumerate(measured(d, n_boot=0).rows):
        one, mine = row.outcomes[0], d.cells == g
        if len(torch.unique(d.targets[mine])) < 2:
            assert math.isnan(one.auroc.value)
            assert one.auroc.reason in ("no samples", "no positives", "no negatives")
            continue
        expected = roc_auc_score(d.targets[mine], d.probs[mine])
        assert abs(one.auroc.value - expected) <= one.auroc_error + 1e-12
        if ties:  # equal scores share a cell in any case, and count one half in both
            assert one.auroc.value == pytest.approx(expected, abs=1e-12)


def test_delong_intervals_are_those_of_a_plain_loop_and_cover() -> None:
    make = np.random.default_rng(0)
    covered, truth = 0, 0.5 * (1 + math.erf(1 / 2))  # Phi(d / sqrt 2) for normals d = 1 apart
    for _ in range(300):
        negative, positive = make.normal(0, 1, 60), make.normal(1, 1, 40)
        values = np.unique(np.concatenate([negative, positive]))
        counts = torch.tensor(np.stack([np.isin(values, negative), np.isin(values, positive)], 1).astype(int))
        ((area, error, deviation),) = aurocs_from_cells(counts[None])
        assert error == 0.0
        wins = (positive[:, None] > negative[None, :]).astype(float)
        variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 60
        assert area.value == pytest.approx(wins.mean(), abs=1e-12)
        assert deviation == pytest.approx(math.sqrt(variance), abs=1e-12)
        covered += area.low <= truth <= area.high
    # Standard error 0.0126; the normal interval is known to cover a little less than it says.
    assert abs(covered / 300 - 0.95) < 0.05


@few
@given(seed=seeds, n=st.integers(1, 200))
def test_accuracy_parity_weighs_the_others_by_their_size(seed: int, n: int) -> None:
    d = data("binary", n, seed)
    right = ((d.probs > 0.5).long() == d.targets).double()
    chosen = (d.probs > 0.5).double()
    for g, row in enumerate(measured(d, n_boot=0).rows):
        mine = d.cells == g
        for got, values in (
            (row.accuracy_parity_difference, right),
            (row.outcomes[0].statistical_parity_difference, chosen),
        ):
            if mine.any() and not mine.all():
                assert got.value == pytest.approx(float(values[mine].mean() - values[~mine].mean()), abs=1e-12)
            else:
                assert math.isnan(got.value)
                assert got.reason


def test_a_hand_table() -> None:
    """Three groups of 10, 20, 70 with accuracies 0.9, 0.5, 0.8."""
    groups = Groups({"g": ["a", "b", "c"]})
    sizes, hits = [10, 20, 70], [9, 10, 56]
    right = torch.cat([torch.arange(n) < h for n, h in zip(sizes, hits, strict=True)]).long()
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    result = fairness(right, torch.ones_like(right), ids, groups)
    parity = [row.accuracy_parity_difference.value for row in result.rows]
    assert parity == pytest.approx([0.9 - 66 / 90, 0.5 - 65 / 80, 0.8 - 19 / 30])
    assert result.gap("accuracy_difference").value == pytest.approx(0.4)
    assert (result.gap("accuracy_difference").highest, result.gap("accuracy_difference").lowest) == ("a", "b")
    assert result.worst_group() == ("b", result.row("b").accuracy)
    assert math.isnan(result.gap("equalized_odds_difference").value)
    assert "no negatives in a, b, c" in result.gap("equalized_odds_difference").reason


def test_two_groups_differ_by_opposite_amounts() -> None:
    d = data("binary", 200, 3)
    result = measured(d).by("sex")
    first, second = (row.accuracy_parity_difference for row in result.rows)
    assert first.value == pytest.approx(-second.value)
    assert first.low == pytest.approx(-second.high)
    assert abs(first.value) == pytest.approx(result.gap("accuracy_difference").value)


def test_collapsing_attributes_is_measuring_by_them() -> None:
    d = data("binary", 300, 5)
    direct = fairness(d.probs, d.targets, d.groups[:, 1], Groups({"age": ["<40", "40-60", ">60"]}), n_boot=0)
    assert measured(d, n_boot=0).by("age").scalars() == pytest.approx(direct.scalars())
    swapped = measured(d, n_boot=0).by("age", "sex")
    assert swapped.rows[1].group == "<40, male"
    assert swapped.rows[1].accuracy == measured(d, n_boot=0).row("male, <40").accuracy


def test_a_missing_denominator_is_nan_with_its_reason_or_left_out_by_name() -> None:
    groups = Groups({"g": ["a", "b", "c"]})
    preds = torch.tensor([1, 0, 1, 1, 0])
    targets = torch.tensor([1, 0, 1, 0, 1])
    ids = torch.tensor([0, 0, 1, 1, 1])
    result = fairness(preds, targets, ids, groups)
    assert result.row("c").n == 0
    assert result.row("c").accuracy.reason == "no samples"
    for name in ("demographic_parity_difference", "equal_opportunity_difference", "accuracy_difference"):
        assert math.isnan(result.gap(name).value)
        assert "in c" in result.gap(name).reason
    counted = fairness(preds, targets, ids, groups, min_count=1)
    assert counted.gap("demographic_parity_difference").value == pytest.approx(2 / 3 - 1 / 2)
    assert counted.gap("demographic_parity_difference").left_out == ("c",)
    assert counted.gap("equalized_odds_difference").value == pytest.approx(1.0)
    assert "c" in str(counted).splitlines()[-4]
    assert math.isnan(fairness(preds, targets, ids, groups, min_count=3).gap("accuracy_difference").value)
    name, worst = result.worst_group("tpr")
    assert (name, worst.value) == ("b", 0.5)
    assert worst.reason == "not ranked: c (no positives)"


def test_all_rates_zero_have_no_ratio() -> None:
    gap = fairness(
        torch.zeros(4).long(), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), Groups({"g": ["a", "b"]})
    )
    ratio = gap.gap("demographic_parity_ratio")
    assert math.isnan(ratio.value)
    assert ratio.reason == "the rate is 0 in every group"
    difference = gap.gap("demographic_parity_difference")
    assert difference.value == 0.0
    assert math.isnan(difference.low)  # rates of exactly 0 are drawn as 0 again: no interval, rather than [0, 0]


def test_decisions_have_no_auroc_and_say_so() -> None:
    d = data("binary", 50, 0)
    result = fairness((d.probs > 0.5).long(), d.targets, d.groups, GROUPS)
    assert result.overall.outcomes[0].auroc.reason == "decisions without probabilities"
    metric = Fairness(GROUPS, auroc=False)
    metric.update(d.probs, d.targets, d.groups)
    assert metric.result().overall.outcomes[0].auroc.reason == "AUROC is switched off"


def test_wilson_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for hits, n in ((0, 10), (3, 10), (10, 10), (250, 1000)):
        theirs = binomtest(hits, n).proportion_ci(0.9, "wilson")
        assert wilson_interval(hits, n, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_intervals_cover_the_true_difference_of_two_groups() -> None:
    """500 draws, two groups of 300: standard error of the coverage 0.0097; a margin of 4 plus the bootstrap's own 0.01."""
    make = torch.Generator().manual_seed(2)
    groups, ids = Groups({"g": ["a", "b"]}), torch.arange(600) % 2
    covered = 0
    for seed in range(500):
        preds = (torch.rand(600, generator=make) < torch.where(ids == 0, 0.6, 0.4)).long()
        gap = fairness(preds, torch.ones(600).long(), ids, groups, n_boot=400, seed=seed).gap(
            "demographic_parity_difference"
        )
        covered += gap.low <= 0.2 <= gap.high
    assert abs(covered / 500 - 0.95) < 0.05


def test_the_seed_decides_the_intervals_and_nothing_else() -> None:
    d = data("binary", 200, 1)
    one, same, other = (measured(d, seed=seed) for seed in (0, 0, 1))
    assert one.to_dict() == same.to_dict()
    assert one.gaps != other.gaps
    assert [g.value for g in one.gaps] == [g.value for g in other.gaps]


def test_a_threshold_decides_what_is_positive() -> None:
    d = data("binary", 100, 1)
    rate = measured(d, threshold=0.8, n_boot=0).overall.outcomes[0].selection_rate
    assert rate.value == pytest.approx(float((d.probs > 0.8).double().mean()))


def test_outcome_names_label_gaps_and_scalars() -> None:
    d = data("multiclass", 120, 0, classes=3)
    named = Outcomes.of("multiclass", names=["cat", "dog", "owl"])
    scalars = fairness(d.probs, d.targets, d.groups, GROUPS, named).scalars()
    assert {"demographic_parity_difference/owl", "tpr/cat/male, <40", "accuracy/male, <40"} <= set(scalars)

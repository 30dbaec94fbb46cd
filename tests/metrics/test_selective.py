"""Risk against coverage, compared with plain loops over samples and over random orders of ties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dp.metrics import Groups, SelectivePrediction
from lightning_dp.metrics.functional import area_under_risk_coverage, selective
from tests.metrics.helpers import GROUPS, data

few = settings(max_examples=25)
seeds = st.integers(0, 10_000)


def loop_aurc(confidence: Tensor, wrong: Tensor) -> float:
    """The O(n^2) definition: the risk of the k most confident, for each k; ties by their expectation."""
    total, n = 0.0, len(confidence)
    order = sorted(range(n), key=lambda i: -float(confidence[i]))
    for k in range(1, n + 1):
        edge = float(confidence[order[k - 1]])
        above = [i for i in range(n) if float(confidence[i]) > edge]
        tied = [i for i in range(n) if float(confidence[i]) == edge]
        errors = sum(float(wrong[i]) for i in above)
        errors += (k - len(above)) * sum(float(wrong[i]) for i in tied) / len(tied)
        total += errors / k
    return total / n


@few
@given(seed=seeds, n=st.integers(1, 60), levels=st.sampled_from([3, 10, 10_000]))
def test_aurc_is_that_of_a_plain_loop(seed: int, n: int, levels: int) -> None:
    make = torch.Generator().manual_seed(seed)
    confidence = torch.randint(0, levels + 1, (n,), generator=make) / levels
    wrong = (torch.rand(n, generator=make) < 0.4).long()
    assert area_under_risk_coverage(confidence, wrong) == pytest.approx(loop_aurc(confidence, wrong), abs=1e-9)


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    confidence, wrong = torch.tensor([0.9, 0.6, 0.6, 0.6, 0.1]), torch.tensor([0, 1, 0, 0, 1])
    areas = []
    for order in itertools.permutations([1, 2, 3]):
        errors = np.cumsum(wrong[[0, *order, 4]].numpy())
        areas.append((errors / np.arange(1, 6)).mean())
    assert area_under_risk_coverage(confidence, wrong) == pytest.approx(np.mean(areas), abs=1e-12)


@few
@given(seed=seeds, n=st.integers(1, 200), ties=st.booleans(), task=st.sampled_from(["binary", "multiclass"]))
def test_the_metric_is_within_its_stated_error_of_the_exact_area(seed: int, n: int, ties: bool, task: str) -> None:
    d = data(task, n, seed, ties=ties, dtype=torch.float64)
    rows = selective(d.probs, d.targets, d.groups, GROUPS, d.outcomes)
    wrong = (d.outcomes.decisions(d.probs) != d.outcomes.targets(d.targets)).reshape(-1).long()
    confidence = d.probs.amax(1) if task == "multiclass" else torch.maximum(d.probs, 1 - d.probs)
    for g, row in enumerate(rows.rows):
        mine = d.cells == g
        assert row.n == int(mine.sum())
        if not row.n:
            assert math.isnan(row.aurc.value)
            assert row.aurc.reason == "no samples"
            continue
        exact = area_under_risk_coverage(confidence[mine], wrong[mine])
        assert abs(row.aurc.value - exact) <= row.aurc_error + 1e-9


@few
@given(seed=seeds, n=st.integers(1, 100))
def test_excess_is_over_the_order_with_all_errors_last(seed: int, n: int) -> None:
    d = data("binary", n, seed)
    row = selective(d.probs, d.targets).overall
    errors = round((1 - row.accuracy.value) * n)
    best = loop_aurc(torch.arange(n, 0, -1), (torch.arange(n) >= n - errors).long())
    assert row.eaurc.value == pytest.approx(row.aurc.value - best, abs=1e-9)
    assert row.eaurc.value >= -1e-9


@few
@given(seed=seeds, n=st.integers(1, 100), coverage=st.floats(0.01, 1.0), risk=st.floats(0.0, 0.6))
def test_operating_points_are_those_of_a_plain_search(seed: int, n: int, coverage: float, risk: float) -> None:
    d = data("binary", n, seed, ties=True)  # levels of 1/8: no two of them share a cell
    row = selective(d.probs, d.targets).overall
    confidence = torch.maximum(d.probs, 1 - d.probs).double()
    wrong = ((d.probs > 0.5).long() != d.targets).double()
    sets = [confidence >= t for t in sorted(set(confidence.tolist()), reverse=True)]
    smallest = next(s for s in sets if float(s.double().mean()) >= coverage - 1e-12)
    point = row.at_coverage(coverage)
    assert point.coverage.value == pytest.approx(float(smallest.double().mean()))
    assert point.selective_accuracy.value == pytest.approx(1 - float(wrong[smallest].mean()))
    assert point.selective_accuracy.n == int(smallest.sum())
    good = [float(s.double().mean()) for s in sets if float(wrong[s].mean()) <= risk]
    assert row.coverage_at_risk(risk).value == pytest.approx(max(good, default=0.0))
    assert row.at_threshold(point.threshold) == point


def test_one_threshold_for_all_groups_answers_the_unsure_group_less() -> None:
    n = 1000
    sure, unsure = torch.linspace(0.7, 0.99, n), torch.linspace(0.5, 0.8, n)
    probs, ids = torch.cat([sure, unsure]), torch.repeat_interleave(torch.arange(2), n)
    result = selective(probs, torch.ones(2 * n), ids, Groups({"g": ["sure", "unsure"]}))
    points = result.at_coverage(0.5)
    assert points["all"].coverage.value == pytest.approx(0.5, abs=0.02)
    assert points["sure"].coverage.value > 0.8 > 0.2 > points["unsure"].coverage.value
    accepted = probs >= points["all"].threshold
    assert points["unsure"].coverage.value == pytest.approx(float(accepted[n:].double().mean()), abs=1e-9)
    named = result.scalars()
    assert named["coverage_at_0.5/unsure"] == points["unsure"].coverage.value


def test_scores_of_the_users_own_order_the_samples() -> None:
    d = data("multiclass", 100, 0)
    wrong = (d.probs.argmax(1) != d.targets).double()
    oracle = SelectivePrediction(num_classes=4)
    oracle.update(d.probs, d.targets, scores=0.9 - 0.5 * wrong)
    assert oracle.result().overall.eaurc.value == pytest.approx(0.0, abs=1e-3)
    assert oracle.result().overall.at_coverage(float(1 - wrong.mean())).selective_accuracy.value == 1.0


def test_nothing_answered_is_no_accuracy() -> None:
    row = selective(torch.tensor([0.6, 0.7]), torch.tensor([1, 1])).overall
    point = row.at_threshold(0.99)
    assert point.coverage.value == 0.0
    assert point.selective_accuracy.reason == "nothing is answered"
    with pytest.raises(ValueError, match="coverage must lie"):
        row.at_coverage(0.0)

"""Calibration measures against torchmetrics, scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from lightning_dp.metrics import Calibration, CalibrationResult, Groups
from lightning_dp.metrics.functional import adaptive_calibration_error, calibration
from tests.metrics.helpers import GROUPS, Data, data

few = settings(max_examples=25)
seeds, sizes = st.integers(0, 10_000), st.integers(1, 300)
tasks = st.sampled_from(["binary", "multiclass", "multilabel"])


def measured(d: Data, groups: Groups | None = None, n_bins: int = 15) -> CalibrationResult:
    return calibration(d.probs, d.targets, None if groups is None else d.groups, groups, d.outcomes, n_bins)


def events(d: Data) -> tuple[Tensor, Tensor]:
    """The events of the top-label or positive-class reliability diagram."""
    if d.outcomes.task == "multiclass":
        confidence, top = d.probs.max(1)
        return confidence, top == d.targets
    return d.probs.reshape(-1), d.targets.reshape(-1) == 1


def loop_ece(p: Tensor, came: Tensor, n_bins: int) -> tuple[float, float]:
    gaps, total = [0.0], 0.0
    for b in range(n_bins):
        inside = [
            i
            for i in range(len(p))
            if min(int(torch.bucketize(p[i].double(), edges(n_bins), right=True)) - 1, n_bins - 1) == b
        ]
        if inside:
            gap = abs(sum(float(came[i]) for i in inside) - sum(float(p[i]) for i in inside)) / len(inside)
            gaps.append(gap)
            total += gap * len(inside) / len(p)
    return total, max(gaps)


def edges(n_bins: int) -> Tensor:
    return torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)


@few
@given(seed=seeds, n=st.integers(1, 80), task=tasks, ties=st.booleans(), n_bins=st.integers(1, 20))
def test_ece_and_mce_are_those_of_a_plain_loop(seed: int, n: int, task: str, ties: bool, n_bins: int) -> None:
    d = data(task, n, seed, ties=ties)
    got = measured(d, n_bins=n_bins).overall
    ece, mce = loop_ece(*events(d), n_bins)
    assert got.ece.value == pytest.approx(ece, abs=1e-9)
    assert got.mce.value == pytest.approx(mce, abs=1e-9)


@few
@given(seed=seeds, n=sizes, task=st.sampled_from(["binary", "multiclass"]), n_bins=st.integers(2, 20))
def test_ece_and_mce_are_those_of_torchmetrics(seed: int, n: int, task: str, n_bins: int) -> None:
    d = data(task, n, seed)
    got = measured(d, n_bins=n_bins).overall
    for norm, value in (("l1", got.ece.value), ("max", got.mce.value)):
        if task == "binary":
            theirs = binary_calibration_error(d.probs, d.targets, n_bins=n_bins, norm=norm)
        else:
            theirs = multiclass_calibration_error(d.probs, d.targets, num_classes=4, n_bins=n_bins, norm=norm)
        assert value == pytest.approx(float(theirs), abs=2e-6)  # theirs is float32


def test_a_probability_of_one_belongs_to_the_last_bin() -> None:
    got = calibration(torch.tensor([1.0, 0.95]), torch.tensor([1, 1]), n_bins=10).overall
    assert [b.frequency.n for b in got.bins] == [0] * 9 + [2]
    assert got.ece.value == pytest.approx(0.025)


@few
@given(seed=seeds, n=sizes)
def test_brier_and_nll_are_those_of_scikit_learn(seed: int, n: int) -> None:
    d = data("binary", n, seed, dtype=torch.float64)
    got = measured(d).overall
    assert got.brier.value == pytest.approx(brier_score_loss(d.targets, d.probs, pos_label=1), abs=1e-12)
    assert got.nll.value == pytest.approx(log_loss(d.targets, d.probs, labels=[0, 1]), abs=1e-9)
    d = data("multiclass", n, seed, dtype=torch.float64)
    got = measured(d).overall
    truth = np.eye(4)[d.targets.numpy()]
    assert got.brier.value == pytest.approx(float(((d.probs.numpy() - truth) ** 2).sum(1).mean()), abs=1e-12)
    assert got.nll.value == pytest.approx(log_loss(d.targets, d.probs, labels=range(4)), abs=1e-9)
    d = data("multilabel", n, seed, dtype=torch.float64)
    got = measured(d).overall
    labels = [(d.targets[:, k], d.probs[:, k]) for k in range(4)]
    assert got.brier.value == pytest.approx(
        np.mean([brier_score_loss(y, p, pos_label=1) for y, p in labels]), abs=1e-12
    )
    assert got.nll.value == pytest.approx(np.mean([log_loss(y, p, labels=[0, 1]) for y, p in labels]), abs=1e-9)


@few
@given(seed=seeds, per_bin=st.integers(1, 20), n_bins=st.integers(1, 15))
def test_adaptive_ece_cuts_distinct_probabilities_into_equal_parts(seed: int, per_bin: int, n_bins: int) -> None:
    d = data("binary", per_bin * n_bins, seed, dtype=torch.float64)
    order = np.argsort(d.probs.numpy())
    parts = np.array_split(order, n_bins)
    gaps = [abs(d.probs.numpy()[part].mean() - d.targets.numpy()[part].mean()) for part in parts]
    assert adaptive_calibration_error(d.probs, d.targets, n_bins) == pytest.approx(np.mean(gaps), abs=1e-9)


@few
@given(seed=seeds, n=sizes, ties=st.booleans(), n_bins=st.integers(1, 15))
def test_adaptive_ece_from_cells_is_near_the_exact_one(seed: int, n: int, ties: bool, n_bins: int) -> None:
    """Equal but where two different probabilities share a cell; then within the stated bound."""
    d = data("binary", n, seed, ties=ties, dtype=torch.float64)
    metric = Calibration("binary", n_bins=n_bins)
    metric.update(d.probs, d.targets)
    cells = metric.counts().cells[0]
    got = metric.result().overall.adaptive_ece.value
    exact = adaptive_calibration_error(d.probs, d.targets, n_bins)
    distinct = len(torch.unique(d.probs)) == int((cells[:, 0] > 0).sum())
    bound = 0.0 if distinct else 2 * (n_bins - 1) * float(cells[:, 0].max()) / n
    assert abs(got - exact) <= bound + 1e-9


def test_adaptive_ece_keeps_equal_probabilities_together_whatever_their_order() -> None:
    p, y = torch.tensor([0.2] * 6 + [0.8] * 4), torch.tensor([0, 1, 0, 0, 1, 0, 1, 1, 1, 0])
    shuffled = torch.randperm(10)
    values = [adaptive_calibration_error(p[i], y[i], 5) for i in (torch.arange(10), shuffled)]
    assert values == pytest.approx([0.6 * abs(0.2 - 2 / 6) + 0.4 * abs(0.8 - 0.75)] * 2)


@few
@given(seed=seeds, n=st.integers(1, 60), task=tasks)
def test_classwise_ece_is_the_mean_of_one_against_the_rest(seed: int, n: int, task: str) -> None:
    d = data(task, n, seed)
    truth = d.outcomes.one_hot(d.outcomes.targets(d.targets))
    p = d.probs[:, None] if task == "binary" else d.probs
    each = [loop_ece(p[:, k], truth[:, k], 15)[0] for k in range(len(d.outcomes))]
    assert measured(d).overall.classwise_ece.value == pytest.approx(np.mean(each), abs=1e-9)


@few
@given(seed=seeds, n=sizes, task=tasks)
def test_a_group_is_measured_as_if_alone(seed: int, n: int, task: str) -> None:
    d = data(task, n, seed)
    together = measured(d, GROUPS)
    for g, row in enumerate(together.rows):
        mine = d.cells == g
        alone = calibration(d.probs[mine], d.targets[mine], outcomes=d.outcomes).overall
        assert row.n == int(mine.sum())
        for name in ("accuracy", "ece", "mce", "adaptive_ece", "classwise_ece", "brier", "nll"):
            ours, theirs = getattr(row, name), getattr(alone, name)
            assert ours.value == pytest.approx(theirs.value, abs=1e-9, nan_ok=True)
            assert ours.reason == theirs.reason
    by_sex = together.by("sex")
    assert [row.group for row in by_sex.rows] == ["female", "male"]
    direct = calibration(d.probs, d.targets, d.groups[:, 0], Groups({"sex": ["female", "male"]}), d.outcomes)
    for one, other in zip(by_sex.rows, direct.rows, strict=True):
        assert one.ece.value == pytest.approx(other.ece.value, abs=1e-9, nan_ok=True)


def test_calibrated_predictions_have_little_error_and_constant_ones_the_difference() -> None:
    p = torch.rand(200_000, dtype=torch.float64)
    y = (torch.rand(200_000) < p).long()
    # 15 bins of 13,333: an error of about sqrt(p (1 - p) / 13333) < 0.0044 each; the mean is far below.
    assert calibration(p, y).overall.ece.value < 0.006
    constant = calibration(torch.full((1000,), 0.9), (torch.arange(1000) % 10 < 7).long()).overall
    assert constant.ece.value == pytest.approx(0.2, abs=1e-6)
    assert constant.adaptive_ece.value == pytest.approx(0.2, abs=1e-6)


def test_intervals_of_brier_cover_as_often_as_they_say() -> None:
    """400 samples of 200: coverage 0.95 has a standard error of 0.011; 4 of them allow a false alarm in 16,000 runs."""
    make = torch.Generator().manual_seed(1)
    p = torch.rand(400, 200, generator=make, dtype=torch.float64)
    y = (torch.rand(400, 200, generator=make, dtype=torch.float64) < p).long()
    covered = 0
    for one, truth in zip(p, y, strict=True):
        brier = calibration(one, truth).overall.brier
        covered += brier.low <= 1 / 6 <= brier.high  # E p (1 - p)
    assert abs(covered / 400 - 0.95) < 0.044


def test_an_impossible_truth_makes_the_nll_infinite_with_its_reason() -> None:
    got = calibration(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1, 1, 1])).overall.nll
    assert math.isinf(got.value)
    assert "1 of 3 samples" in got.reason
    assert got.to_dict()["value"] is None


def test_the_reliability_diagram_counts_every_event() -> None:
    d = data("multilabel", 100, 0)
    row = measured(d).overall
    assert sum(b.frequency.n for b in row.bins) == 400
    assert all(b.frequency.low <= b.frequency.value <= b.frequency.high for b in row.bins if b.frequency.n)
    assert all(b.low <= b.confidence <= b.high for b in row.bins if b.frequency.n)

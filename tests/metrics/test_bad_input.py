"""Bad input is refused with what, why and what to do, or gives NaN with a reason; never a wrong number."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dp.metrics import (
    Abstention,
    Calibration,
    Fairness,
    Groups,
    Multiplicity,
    SelectivePrediction,
    wilson_interval,
)
from lightning_dp.metrics.base import SummedMetric
from lightning_dp.metrics.functional import calibration, fairness
from tests.metrics.helpers import GROUPS

SEX = Groups({"sex": ["female", "male"]})
nan = math.nan


def feed(metric: SummedMetric, probs: Tensor, targets: Tensor, groups: Any) -> None:
    if isinstance(metric, Multiplicity):
        tally = metric.tally(targets, groups)
        tally.add(probs)
        metric.update(tally)
    else:
        metric.update(probs, targets, groups)


def every(task: Any, groups: Groups = SEX) -> list[SummedMetric]:
    size = None if task == "binary" else 3
    return [
        Calibration(task, size, groups=groups),
        Fairness(groups, task, size),
        SelectivePrediction(task, size, groups=groups),
        Multiplicity(1, task, size, groups=groups),
    ]


KINDS = range(4)
P2, P3 = torch.tensor([0.2, 0.7]), torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
Y2, IDS = torch.tensor([0, 1]), torch.tensor([0, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "task, probs, targets, groups, message",
    [
        ("binary", torch.tensor([nan, 0.7]), Y2, IDS, "probabilities of 1 of 2 samples are NaN"),
        ("multiclass", P3 * torch.tensor([[1], [nan]]), Y2, IDS, "probabilities of 1 of 2 samples are NaN"),
        ("binary", torch.tensor([-1.3, 2.0]), Y2, IDS, r"must lie in \[0, 1\].*logits\.sigmoid\(\)"),
        ("multiclass", 4 * P3, Y2, IDS, r"logits\.softmax\(dim=1\)"),
        ("multiclass", P3 / 2, Y2, IDS, "must sum to one over the classes, one is off by 0.5"),
        ("multiclass", P3[:, :2], Y2, IDS, r"must have the shape \(n, 3\), got \(2, 2\)"),
        ("binary", P3, Y2, IDS, r"must have the shape \(n,\)"),
        ("binary", P2, torch.tensor([0, 2]), IDS, "targets must be numbers from 0 to 1, got 0 to 2"),
        ("multiclass", P3, torch.tensor([0, 3]), IDS, "targets must be numbers from 0 to 2"),
        ("multiclass", P3, torch.tensor([-1, 0]), IDS, "ignore-index"),
        ("binary", P2, torch.tensor([0.0, 0.5]), IDS, "whole numbers"),
        ("binary", P2, torch.tensor([0.0, nan]), IDS, "targets of 1 of 2 samples are NaN"),
        (
            "binary",
            P2,
            torch.tensor([0, 1, 1]),
            torch.tensor([0, 1, 1]),
            "2 pred|3 targets|tally has 3|2 values|3 values",
        ),
        ("binary", P2, Y2, torch.tensor([0, 2]), "level numbers from 0 to 2"),
        ("binary", P2, Y2, torch.tensor([0, -1]), "no sample is left out silently"),
        ("binary", P2, Y2, torch.tensor([0.0, nan]), "no level numbers"),
        ("binary", P2, Y2, ["female", "diverse"], r"values \['diverse'\] that are none of its levels"),
        ("binary", P2, Y2, torch.tensor([0, 1, 1]), "3 values for 2 samples"),
        ("binary", P2, Y2, None, "groups are missing"),
        ("binary", P2, Y2, {"age": IDS}, "'sex'.* missing"),
    ],
)
def test_bad_samples_are_refused_and_leave_the_metric_as_it_was(
    kind: int, task: str, probs: Tensor, targets: Tensor, groups: Any, message: str
) -> None:
    metric = every(task)[kind]
    good = (P2, Y2, IDS) if task == "binary" else (P3, Y2, IDS)
    feed(metric, *good)
    before = metric.result()
    with pytest.raises(ValueError, match=message):
        feed(metric, probs, targets, groups)
    assert metric.result().to_dict() == before.to_dict()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Calibration("ordinal"), 'task must be "binary"'),
        (lambda: Calibration("multiclass"), "needs num_classes"),
        (lambda: Calibration("multiclass", 1), "more than 1 classes"),
        (lambda: Calibration("binary", 5), "not binary"),
        (lambda: Calibration("multiclass", 3, ["a", "b"]), "3 outcomes needs as many different names"),
        (lambda: Calibration("multiclass", 2, ["a", "a"]), "different names"),
        (lambda: Calibration("binary", n_bins=0), "n_bins must be at least 1"),
        (lambda: Calibration("binary", confidence=95), "confidence must lie strictly between 0 and 1"),
        (lambda: Fairness(SEX, threshold=5.0), "threshold must lie"),
        (lambda: Fairness(SEX, n_boot=-1), "must not be negative"),
        (lambda: SelectivePrediction("multilabel", 3), "each label as a binary task"),
        (lambda: SelectivePrediction("binary", coverages=(0.0,)), "coverages lie in"),
        (lambda: Multiplicity(0), "num_members must be at least 1"),
        (lambda: Multiplicity(2, "multilabel", 3), "each label as a binary task"),
        (lambda: Multiplicity(2, "binary", rules=[Abstention.unanimity()] * 2), "each rule may be given once"),
        (lambda: Abstention.consensus(1.5), "needs a level between 0 and 1"),
        (lambda: Abstention.binomial(1.0), "needs a level between 0 and 1"),
        (lambda: Groups({}), "at least one attribute"),
        (lambda: Groups({"sex": []}), "at least one attribute with one level"),
        (lambda: Groups({"sex": ["f", "f"]}), "names a level twice"),
        (lambda: Groups({"sex": ["f", "all"]}), "stands for all samples"),
        (lambda: Groups({"a": ["x, y", "x"], "b": ["z", "y, z"]}), "avoid commas"),
        (lambda: Fairness(Groups({"a": [str(k) for k in range(200)]}), "multiclass", 100), "auroc=False"),
        (lambda: GROUPS.collapse(["height"]), "the attributes are"),
        (lambda: wilson_interval(1, 2, 0.0), "confidence must lie"),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_scores_outside_the_unit_interval_are_refused() -> None:
    metric = SelectivePrediction("binary")
    for scores in (torch.tensor([0.1, 1.2]), torch.tensor([0.1, nan])):
        with pytest.raises(ValueError, match="scores must lie"):
            metric.update(P2, Y2, scores=scores)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_test_set_is_all_nan_with_reasons(kind: int, task: str) -> None:
    metric = every(task, GROUPS)[kind]
    for fed in (False, True):
        if fed:
            probs = torch.zeros(0) if task == "binary" else torch.zeros(0, 3)
            feed(metric, probs, torch.zeros(0).long(), torch.zeros(0, 2).long())
        result = metric.result()
        assert [row.n for row in (*result.rows, result.overall)] == [0] * 7
        assert all(math.isnan(value) for value in result.scalars().values())
        reasons = [found for found in walk(result.to_dict()) if found["value"] is None]
        assert reasons
        assert all(found["reason"] for found in reasons)
        assert "no samples" in str(result)


def walk(value: Any) -> list[dict[str, Any]]:
    """All estimates and gaps of a result's plain values."""
    if isinstance(value, list):
        return [found for item in value for found in walk(item)]
    if not isinstance(value, dict):
        return []
    if "value" in value:
        return [value]
    return [found for item in value.values() for found in walk(item)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_never_seen_is_a_row_with_no_samples_and_reasons(kind: int) -> None:
    metric = every("binary")[kind]
    feed(metric, torch.rand(20), torch.arange(20) % 2, torch.zeros(20).long())
    result = metric.result()
    assert [row.n for row in result.rows] == [20, 0]
    assert "no samples" in str(result)
    missing = [found for found in walk(result.to_dict()) if found["value"] is None]
    assert missing
    assert all(found["reason"] for found in missing)
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_class_only_has_no_auroc_and_no_rate_of_the_other() -> None:
    result = fairness(torch.rand(20), torch.ones(20).long(), torch.arange(20) % 2, SEX)
    for row in (*result.rows, result.overall):
        assert row.outcomes[0].auroc.reason == row.outcomes[0].fpr.reason == "no negatives"
        assert row.outcomes[0].tpr.n == row.n
    assert result.gap("auroc_gap").reason == "no AUROC in female, male"
    assert result.gap("equalized_odds_difference").reason == "no negatives in female, male"
    assert result.gap("equal_opportunity_difference").reason == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_softmax_of_any_precision_sums_to_one(dtype: Any) -> None:
    probs = torch.randn(500, 200).to(dtype).softmax(1)
    assert calibration(probs, torch.zeros(500).long()).overall.n == 500
    with pytest.raises(ValueError, match="sum to one"):
        calibration(probs * 0.9, torch.zeros(500).long())


def test_levels_may_be_numbers_names_booleans_or_columns() -> None:
    expected = torch.tensor([1, 3, 5])
    columns = torch.tensor([[0, 1], [1, 0], [1, 2]])
    assert GROUPS.encode(columns, 3).tolist() == expected.tolist()
    named = {"sex": ["female", "male", "male"], "age": ["40-60", "<40", ">60"]}
    assert GROUPS.encode(named, 3).tolist() == expected.tolist()
    assert GROUPS.encode({"age": columns[:, 1], "sex": columns[:, 0] == 1}, 3).tolist() == expected.tolist()
    assert SEX.encode([0, 1, 1], 3).tolist() == [0, 1, 1]
    assert GROUPS.names[1] == "female, 40-60"
    with pytest.raises(ValueError, match=r"need a tensor \(n, 2\)"):
        GROUPS.encode(columns[:, 0], 3)


def test_groups_as_pairs_are_those_of_a_mapping_and_name_nothing_twice() -> None:
    pairs = [("sex", ["f", "m"]), ("age", ["<60", ">=60"])]
    assert Groups(pairs) == Groups(dict(pairs))
    with pytest.raises(ValueError, match="named twice"):
        Groups([*pairs, ("sex", ["x"])])

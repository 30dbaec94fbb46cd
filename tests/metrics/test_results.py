"""Results and metrics as others use them: JSON, tables, pictures, loggers, collections, copies."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_dp.metrics import Calibration, Fairness, Groups, Multiplicity, SelectivePrediction
from lightning_dp.metrics.base import SummedMetric
from tests.metrics.helpers import GROUPS, data

NAMES = ("calibration", "fairness", "selective", "multiplicity")


def fed(name: str, task: Any, n: int = 120, groups: Groups = GROUPS) -> SummedMetric:
    d = data(task, n, 0, classes=3)
    size = None if task == "binary" else 3
    if name == "multiplicity":
        multiplicity = Multiplicity(2, task, size, groups=groups)
        tally = multiplicity.tally(d.targets, d.groups)
        tally.add(d.probs)
        tally.add(d.probs.flip(0))
        multiplicity.update(tally)
        return multiplicity
    metric = {
        "calibration": lambda: Calibration(task, size, groups=groups),
        "fairness": lambda: Fairness(groups, task, size, n_boot=50),
        "selective": lambda: SelectivePrediction(task, size, groups=groups),
    }[name]()
    metric.update(d.probs, d.targets, d.groups if groups is GROUPS else None)
    return metric


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_result_is_json_a_table_and_scalars(name: str, task: str) -> None:
    metric = fed(name, task)
    result = metric.result()
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [row["n"] for row in plain["groups"]] == [row.n for row in result.rows]
    assert sum(row.n for row in result.rows) == plain["overall"]["n"] == 120
    assert all(group in str(result) for group in GROUPS.names)
    scalars = metric.compute()
    assert set(scalars) == set(result.scalars())
    assert all(value.ndim == 0 for value in scalars.values())
    assert pickle.loads(pickle.dumps(result)).by("sex").to_dict() == result.by("sex").to_dict()
    assert sum(row.n for row in result.by("age").rows) == 120
    with pytest.raises(KeyError, match="no group 'nobody'"):
        result.row("nobody")


@pytest.mark.parametrize("name", NAMES)
def test_scalars_have_the_same_names_with_and_without_samples(name: str) -> None:
    metric = fed(name, "binary")
    before = set(metric.result().scalars())
    metric.reset()
    assert set(metric.result().scalars()) == before
    assert metric.result().overall.n == 0


@pytest.mark.parametrize("name", NAMES)
def test_batches_add_up(name: str) -> None:
    d = data("binary", 90, 3)
    whole, parts = fed(name, "binary", 1), fed(name, "binary", 1)
    for metric, chunks in ((whole, 1), (parts, 4)):
        metric.reset()
        for part in torch.arange(90).tensor_split(chunks):
            if isinstance(metric, Multiplicity):
                tally = metric.tally(d.targets[part], d.groups[part])
                tally.add(d.probs[part])
                tally.add(1 - d.probs[part])
                metric.update(tally)
            else:
                metric.update(d.probs[part], d.targets[part], d.groups[part])
    one, other = whole.result().to_dict(), parts.result().to_dict()
    assert json.dumps(rounded(one)) == json.dumps(rounded(other))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 9) if isinstance(value, float) else value


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_figures_and_axes(name: str, tmp_path: Any) -> None:
    from matplotlib.figure import Figure

    fig, ax = fed(name, "binary").plot()
    assert isinstance(fig, Figure)
    fig.savefig(tmp_path / "picture.png")
    assert ax.get_xlabel()
    again, same = fed(name, "binary").plot(ax=ax)
    assert (again, same) == (fig, ax)
    empty = fed(name, "binary")
    empty.reset()
    empty.plot()[0].savefig(tmp_path / "empty.png")


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-dp\[plots\]"):
        fed("calibration", "binary").plot()


def test_metrics_live_in_a_collection_and_can_be_copied() -> None:
    d = data("binary", 60, 0)
    collection = MetricCollection({"c": Calibration("binary", groups=GROUPS), "f": Fairness(GROUPS)})
    collection.update(d.probs, d.targets, d.groups)
    values = collection.compute()
    assert {"ece", "demographic_parity_difference"} <= {key.removeprefix("c_").removeprefix("f_") for key in values}
    metric = fed("fairness", "binary")
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert twin.result().to_dict() == metric.result().to_dict()


def test_forward_gives_the_batch_and_adds_it() -> None:
    d = data("binary", 60, 0)
    metric = Calibration("binary")
    first = metric(d.probs[:40], d.targets[:40])
    metric(d.probs[40:], d.targets[40:])
    alone = Calibration("binary")
    alone.update(d.probs[:40], d.targets[:40])
    assert float(first["brier"]) == pytest.approx(alone.result().overall.brier.value)
    assert metric.result().overall.n == 60


def test_fairness_pictures_any_measure() -> None:
    result = fed("fairness", "multiclass").result()
    result.plot("tpr", outcome="1")
    with pytest.raises(KeyError, match="needs an outcome"):
        result.plot("tpr")
    with pytest.raises(KeyError, match="no measure"):
        result.plot("kindness")
    with pytest.raises(KeyError, match="no gap"):
        result.gap("kindness_gap")


@pytest.mark.parametrize("n", [0, 1, 120])
@pytest.mark.parametrize("groups", [GROUPS, Groups.everybody()], ids=["groups", "everybody"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize(
    "name, measures",
    [
        ("calibration", {"ece", "brier", "nll", "mce", "accuracy"}),
        ("calibration", {"ece"}),
        ("fairness", {"accuracy", "accuracy_difference", "accuracy_parity_difference", "worst_group_accuracy"}),
        ("fairness", {"accuracy", "auroc_gap", "tpr"}),
    ],
)
def test_scalars_without_the_result_are_those_of_the_result(
    name: str, measures: set[str], task: str, groups: Groups, n: int
) -> None:
    metric = fed(name, task, n, groups)
    counts = metric.take()
    result = metric.result_of(counts).scalars()
    found = metric.scalars(counts, frozenset(measures))
    assert found is not None
    wanted = {key for key in result if key.split("/")[0] in measures}
    assert wanted <= found.keys() <= result.keys()
    assert [found[key] for key in wanted] == pytest.approx([result[key] for key in wanted], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_taken_stays_and_the_metric_starts_afresh(name: str) -> None:
    metric = fed(name, "multiclass")
    before = metric.result().to_dict()
    counts = metric.take()
    assert metric.counts()[0].sum() == 0
    if name != "multiplicity":
        d = data("multiclass", 30, 1, classes=3)
        metric.update(d.probs, d.targets, d.groups)
    assert metric.result_of(counts).to_dict() == before

"""Calibration and fairness monitors give the pure functions' numbers, to any Trainer, and say what they lack."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dp import CalibrationMonitor, DPStrategy, FairnessMonitor, Predictions
from lightning_dp.metrics import Calibration, Fairness, Groups
from tests.callbacks.helpers import CLASSES, GROUPS, Grouped, N, loader, samples, trainer


def plain(module: Grouped, seed: int = 0, n_boot: int = 1000) -> dict[str, Any]:
    """What a loop over single samples gives the metrics."""
    calibration, fairness = (
        Calibration("multiclass", 3, groups=GROUPS),
        Fairness(GROUPS, "multiclass", 3, n_boot=n_boot),
    )
    x, y, groups = samples(seed=seed)
    with torch.no_grad():
        for i in range(N):
            probs = module(x[i : i + 1]).softmax(1)
            calibration.update(probs, y[i : i + 1], groups[i : i + 1])
            fairness.update(probs, y[i : i + 1], groups[i : i + 1])
    return {"calibration": calibration.result(), "fairness": fairness.result()}


def monitors(**arguments: Any) -> tuple[CalibrationMonitor, FairnessMonitor]:
    return (
        CalibrationMonitor("multiclass", CLASSES, groups=GROUPS, **arguments),
        FairnessMonitor(GROUPS, "multiclass", CLASSES, **arguments),
    )


def close(one: Any, other: Any) -> None:
    """Equal plain forms, up to single precision of the network's batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    else:
        assert one == other


@pytest.mark.filterwarnings("ignore:.*these have no value:UserWarning")  # a class that training lets vanish
@pytest.mark.parametrize("private", [False, True])
def test_results_are_those_of_a_plain_loop(private: bool) -> None:
    module = Grouped()
    calibration, fairness = monitors(log=["all"])
    run = trainer(
        calibration, fairness, **({"strategy": DPStrategy(noise_multiplier=1.0)} if private else {}), max_epochs=2
    )
    run.fit(module, loader(), loader(seed=5))
    expected = plain(module, seed=5)
    close(calibration.results["val"].to_dict(), expected["calibration"].to_dict())
    close(fairness.results["val"].to_dict(), expected["fairness"].to_dict())
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["val/ece/female, old"] == pytest.approx(calibration.result.row("female, old").ece.value, abs=1e-6)
    names = {f"val/{name}" for r in (calibration.result, fairness.result) for name in r.scalars()}
    assert names <= logged.keys()

    run.test(module, loader(), verbose=False)
    close(calibration.results["test"].to_dict(), plain(module)["calibration"].to_dict())
    assert fairness.result is fairness.results["test"] is not fairness.results["val"]


def test_an_earlier_result_is_not_touched_by_a_later_stage() -> None:
    calibration, fairness = monitors()
    module, run = Grouped(), trainer(calibration, fairness)
    run.validate(module, loader(seed=5), verbose=False)
    run.test(module, loader(seed=6), verbose=False)
    close(fairness.results["val"].to_dict(), plain(module, seed=5)["fairness"].to_dict())
    close(calibration.results["val"].to_dict(), plain(module, seed=5)["calibration"].to_dict())


def test_a_monitor_with_results_goes_through_pickle() -> None:
    calibration, fairness = monitors()
    trainer(calibration, fairness).test(Grouped(), loader(), verbose=False)
    for monitor in (calibration, fairness):
        again = pickle.loads(pickle.dumps(monitor))
        close(again.results["test"].to_dict(), monitor.results["test"].to_dict())


def test_probabilities_of_logits_are_torchs() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 40
    found = Predictions(None, logits=logits).probabilities("multiclass")
    torch.testing.assert_close(found, logits.softmax(1))


def test_a_few_numbers_are_logged_unless_others_are_named() -> None:
    run = trainer(*monitors())
    names = {name.removeprefix("test/") for name in run.test(Grouped(), loader(), verbose=False)[0]}
    by_group = {f"{measure}/{group}" for measure in ("ece", "accuracy") for group in GROUPS.names}
    assert names == {"ece", "brier", "nll", "accuracy_difference", "worst_group_accuracy"} | by_group
    run = trainer(monitors(log=["brier"])[0])
    names = {name.removeprefix("test/") for name in run.test(Grouped(), loader(), verbose=False)[0]}
    assert names == {"brier"} | {f"brier/{group}" for group in GROUPS.names}


def test_silent_in_the_sanity_check_and_in_stages_not_asked_for() -> None:
    calibration, fairness = monitors(stages=["test"])
    run = trainer(calibration, fairness, num_sanity_val_steps=2)
    run.fit(Grouped(), loader(), loader())
    assert calibration.results == fairness.results == {}
    assert not [name for name in run.callback_metrics if "ece" in name]
    with pytest.raises(RuntimeError, match="no result yet"):
        calibration.plot()


def test_the_sanity_check_leaves_nothing_in_the_next_result() -> None:
    calibration, _ = monitors()
    trainer(calibration, num_sanity_val_steps=2, max_epochs=2).fit(Grouped(), loader(), loader())
    assert calibration.result.overall.n == N


@pytest.mark.parametrize(
    "returns, missing",
    [
        (lambda found: None, "probs or logits, one of the two and target and groups"),
        (lambda found: found["logits"], "Tensor"),
        (lambda found: {k: v for k, v in found.items() if k != "groups"}, "groups"),
        (lambda found: {k: v for k, v in found.items() if k != "target"}, "target"),
        (lambda found: {**found, "probs": found["logits"].softmax(1)}, "one of the two"),
    ],
)
def test_a_missing_key_shows_the_three_lines(returns: Any, missing: str) -> None:
    with pytest.raises(
        ValueError, match='(?s)FairnessMonitor needs.*def test_step.*return ."logits": logits'
    ) as raised:
        trainer(monitors()[1]).test(Grouped(returns=returns), loader(), verbose=False)
    assert missing in str(raised.value)


def test_extract_reads_other_outputs() -> None:
    calibration, fairness = monitors(
        extract=lambda outputs, batch: Predictions(
            batch[1], probs=outputs, groups={"sex": batch[2][:, 0], "age": batch[2][:, 1]}
        )
    )
    module = Grouped(returns=lambda found: found["logits"].softmax(1))
    trainer(calibration, fairness).test(module, loader(), verbose=False)
    close(fairness.result.to_dict(), plain(module)["fairness"].to_dict())
    close(calibration.result.to_dict(), plain(module)["calibration"].to_dict())


def test_extract_must_return_predictions_with_groups() -> None:
    with pytest.raises(TypeError, match="must return lightning_dp.Predictions"):
        trainer(monitors(extract=lambda outputs, batch: outputs)[0]).test(Grouped(), loader(), verbose=False)
    without = monitors(extract=lambda outputs, batch: Predictions(batch[1], logits=outputs["logits"]))
    with pytest.raises(ValueError, match="needs groups"):
        trainer(without[0]).test(Grouped(), loader(), verbose=False)
    with pytest.raises(ValueError, match="either probs or logits"):
        Predictions(torch.zeros(1))


def changed(**new: Any) -> Any:
    return lambda found: {**found, **{key: change(found) for key, change in new.items()}}


BAD = [
    (changed(target=lambda f: f["target"] + 1), "targets must be numbers from 0 to 2"),
    (changed(target=lambda f: f["target"] - 1), "targets must be numbers from 0 to 2"),
    (
        lambda f: {"probs": f["logits"].softmax(1) * 0.9, "target": f["target"], "groups": f["groups"]},
        "must sum to one",
    ),
    (lambda f: {"probs": f["logits"], "target": f["target"], "groups": f["groups"]}, "If these are logits"),
    (changed(logits=lambda f: f["logits"].index_fill(0, torch.tensor([0]), math.nan)), "NaN"),
    (changed(groups=lambda f: f["groups"] + 1), "level"),
    (changed(groups=lambda f: {"sex": ["other"] * len(f["target"]), "age": f["groups"][:, 1]}), "other"),
    (changed(groups=lambda f: f["groups"][:-1]), "for"),
]


@pytest.mark.parametrize("returns, message", BAD)
def test_bad_input_is_refused_with_a_message(returns: Any, message: str) -> None:
    for monitor in monitors():
        with pytest.raises(ValueError, match=message):
            trainer(monitor).test(Grouped(returns=returns), loader(), verbose=False)


def test_a_group_never_seen_and_one_class_only_stay_with_their_reason() -> None:
    groups = Groups({"sex": ["female", "male", "unknown"]})
    fairness = FairnessMonitor(groups, "multiclass", CLASSES, log=["all"])
    calibration = CalibrationMonitor("multiclass", CLASSES, groups=groups)
    module = Grouped(returns=changed(groups=lambda f: f["groups"][:, 0], target=lambda f: f["target"] * 0))
    run = trainer(fairness, calibration)
    with pytest.warns(UserWarning, match="have no value") as warned:
        run.test(module, loader(), verbose=False)
    told = [str(w.message) for w in warned if "have no value" in str(w.message)]
    assert len(told) == 2
    assert any("unknown" in text and "no samples" in text for text in told)
    assert fairness.result.row("unknown").n == 0
    assert math.isnan(float(run.callback_metrics["test/accuracy/unknown"]))
    assert math.isnan(float(run.callback_metrics["test/ece/unknown"]))
    assert math.isnan(float(run.callback_metrics["test/demographic_parity_difference/0"]))
    assert fairness.result.gap("demographic_parity_difference", "0").reason
    run.test(module, loader(), verbose=False)  # the reasons are shown once: a second warning would be an error


def test_a_number_that_is_computed_and_not_logged_is_missed_aloud_too() -> None:
    """Only a parity that always exists is logged; nobody is outside class 0, so that it has no false positive rate."""
    fairness = FairnessMonitor(GROUPS, "multiclass", CLASSES, log=["demographic_parity_difference"])
    module = Grouped(returns=changed(target=lambda f: f["target"] * 0))
    run = trainer(fairness)
    with pytest.warns(UserWarning, match="have no value") as warned:
        run.test(module, loader(), verbose=False)
    (told,) = [str(w.message) for w in warned if "have no value" in str(w.message)]
    assert not any(math.isnan(float(value)) for value in run.callback_metrics.values())
    assert "fpr, 0, all, overall: no negatives" in told
    run.test(module, loader(), verbose=False)  # once


def test_a_test_set_of_nothing_is_nan_with_the_reason() -> None:
    calibration, fairness = monitors()
    empty = Grouped(returns=lambda f: {k: v[:0] for k, v in f.items()})
    with pytest.warns(UserWarning, match="no samples"):
        trainer(calibration, fairness).test(empty, loader(), verbose=False)
    assert calibration.result.overall.n == 0
    assert math.isnan(calibration.result.overall.ece.value)
    assert calibration.result.overall.ece.reason


def test_several_loaders_need_a_choice() -> None:
    loaders = [loader(), loader(seed=3)]
    with pytest.raises(ValueError, match="will not mix"):
        trainer(monitors()[0]).validate(Grouped(), loaders, verbose=False)
    with pytest.raises(ValueError, match="no val loader 2"):
        trainer(monitors(dataloader_idx=2)[0]).validate(Grouped(), loaders, verbose=False)
    first, second = monitors(dataloader_idx=0, prefix="a")[0], monitors(dataloader_idx=1, prefix="b")[0]
    module = Grouped()
    run = trainer(first, second)
    run.validate(module, loaders, verbose=False)
    close(first.result.to_dict(), plain(module)["calibration"].to_dict())
    close(second.result.to_dict(), plain(module, seed=3)["calibration"].to_dict())
    assert {"val/a/ece", "val/b/ece"} <= run.callback_metrics.keys()


def test_figures_are_drawn_and_saved(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    calibration, fairness = monitors(figures="figures")
    trainer(calibration, fairness, root=tmp_path).test(Grouped(), loader(), verbose=False)
    saved = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"test_calibration.png", "test_fairness_accuracy.png", "test_fairness_selection_rate_0.png"} <= saved
    for monitor, arguments in ((calibration, ["male, old"]), (fairness, ["tpr", "1"])):
        figure, axes = monitor.plot(*arguments)
        assert axes.figure is figure


def test_stages_are_checked() -> None:
    for stages in ([], ["train"]):
        with pytest.raises(ValueError, match="stages must hold"):
            monitors(stages=stages)

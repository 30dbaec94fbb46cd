"""Calibration of the last iterate beside that of the posterior: against plain computations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import LangevinStrategy, PosteriorCalibration, PrivacyConfigError
from tests.strategies.helpers import Tiny, dataset, fit, loader, strategy, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")


def held_out(n: int = 50) -> DataLoader[Any]:
    return DataLoader(dataset(n, seed=5), batch_size=16)


def calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Sum over bins of their share times |accuracy - mean confidence|."""
    confidence, right = p.max(1), p.argmax(1) == y
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean() for b in set(which)]
    return float(sum(gaps))


def expected(p: Tensor, y: Tensor) -> dict[str, float]:
    q, labels = p.double().numpy(), y.numpy()
    return {
        "ece": calibration_error(q, labels),
        "nll": float(-np.log(q[np.arange(len(labels)), labels]).mean()),
        "accuracy": float((q.argmax(1) == labels).mean()),
    }


@torch.no_grad()
def probabilities(module: Tiny, plugin: LangevinStrategy, x: Tensor) -> dict[str, Tensor]:
    means = []
    for sample in plugin.posterior:
        twin = Tiny()
        twin.load_state_dict(sample)
        means.append(twin(x).softmax(-1))
    return {"last": module(x).softmax(-1), "posterior": torch.stack(means).mean(0)}


def test_logged_numbers_are_those_of_a_plain_computation() -> None:
    module, plugin = Tiny(), LangevinStrategy(noise_multiplier=1.0, burn_in=0, thinning=2)
    run = fit(module, plugin, callbacks=[PosteriorCalibration()])
    x, y = dataset(50, seed=5).tensors
    logged = {
        "test": run.test(module, held_out(), verbose=False)[0],
        "val": run.validate(module, held_out(), verbose=False)[0],
    }
    for which, p in probabilities(module, plugin, x).items():
        for part, numbers in logged.items():
            for key, value in expected(p, y).items():
                assert numbers[f"{part}/{which}_{key}"] == pytest.approx(value, abs=1e-5), (part, which, key)


def test_constant_confidence_is_off_by_its_distance_from_the_accuracy() -> None:
    """A network that says 0.8 for class 0 and is right every second time: ECE 0.3, NLL the mean of two logs."""
    module = Tiny(net=torch.nn.Linear(6, 3))
    with torch.no_grad():
        module.net.weight.zero_()
        module.net.bias.copy_(torch.tensor([0.8, 0.1, 0.1]).log())
    data = DataLoader(TensorDataset(torch.randn(40, 6), torch.arange(40) % 2), batch_size=7)
    (result,) = trainer(strategy(), callbacks=[PosteriorCalibration()]).test(module, data, verbose=False)
    assert result["test/last_ece"] == pytest.approx(0.3, abs=1e-6)
    assert result["test/last_accuracy"] == 0.5
    assert result["test/last_nll"] == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2, abs=1e-6)
    assert "test/posterior_ece" not in result  # beside a strategy that keeps no samples


@pytest.mark.parametrize("averaging", [False, True])
def test_during_fit(averaging: bool) -> None:
    callback = PosteriorCalibration(averaging_during_fit=averaging)
    module, plugin = Tiny(), LangevinStrategy(noise_multiplier=1.0, burn_in=0, thinning=2)
    run = trainer(plugin, callbacks=[callback])
    run.fit(module, loader(), held_out())
    assert ("val/posterior_ece" in run.callback_metrics) == averaging
    x, y = dataset(50, seed=5).tensors
    found = probabilities(module, plugin, x)["posterior" if averaging else "last"]
    name = "val/posterior_nll" if averaging else "val/last_nll"
    assert float(run.callback_metrics[name]) == pytest.approx(expected(found, y)["nll"], abs=1e-5)


def test_batches_of_another_form() -> None:
    class Dicts(Tiny):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("sum", self(batch["x"]).sum())

    x, y = dataset(30, seed=5).tensors
    data = DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=10)
    module, plugin = Dicts(), LangevinStrategy(noise_multiplier=1.0)
    run = fit(module, plugin, callbacks=[PosteriorCalibration()])
    with pytest.raises(PrivacyConfigError, match="inputs_and_labels"):
        run.test(module, data, verbose=False)
    run = trainer(
        strategy(), callbacks=[PosteriorCalibration(inputs_and_labels=lambda batch: (batch["x"], batch["y"]))]
    )
    (result,) = run.test(module, data, verbose=False)
    assert result["test/last_nll"] == pytest.approx(expected(module(x).softmax(-1).detach(), y)["nll"], abs=1e-5)

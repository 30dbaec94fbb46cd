"""The regression task on numbers whose scores are known, and private in a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.tasks import RegressionTask
from tests.strategies.helpers import fit, strategy

NAMES: dict[str, Any] = {"targets": ("vat", "asat"), "centre": (3.0, 4.0), "scale": (2.0, 0.5)}


class Constant(nn.Module):
    def __init__(self, value: list[float]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x), -1)


def data(n: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    return TensorDataset(x, torch.stack([3 + 2 * x[:, 0], 4 - x[:, 1]], dim=1))


def scored(network: nn.Module, part: TensorDataset, **arguments: Any) -> dict[str, float]:
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    task = RegressionTask(network, **{**NAMES, **arguments})
    (found,) = trainer.test(task, DataLoader(part, batch_size=7), verbose=False)
    return dict(found)


@pytest.mark.filterwarnings("ignore:The variance of predictions:UserWarning")  # Pearson's r of a constant
def test_the_mean_predictor_has_r2_zero() -> None:
    mean = data().tensors[1].mean(0)
    network = Constant(((mean - torch.tensor([3.0, 4.0])) / torch.tensor([2.0, 0.5])).tolist())
    found = scored(network, data())
    assert found["test/r2_vat"] == pytest.approx(0, abs=1e-5)
    assert found["test/r2_asat"] == pytest.approx(0, abs=1e-5)
    deviation = (data().tensors[1] - mean).abs().mean(0)
    assert [found["test/mae_vat"], found["test/mae_asat"]] == pytest.approx(deviation.tolist(), rel=1e-5)


def test_scores_are_in_the_targets_own_units() -> None:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0, 0], [0, -1.0, 0]]))  # vat exactly; asat half of its deviation
        network.bias.zero_()
    found = scored(network, data())
    y = data().tensors[1][:, 1]
    half = 4 + (y - 4) / 2
    assert found["test/r2_vat"] == pytest.approx(1)
    assert [found["test/pearson_vat"], found["test/pearson_asat"]] == pytest.approx([1, 1])
    assert found["test/r2_asat"] == pytest.approx(float(1 - (y - half).square().sum() / (y - y.mean()).square().sum()))
    assert found["test/mae_asat"] == pytest.approx(float((y - half).abs().mean()))


def test_one_sample_has_no_r2() -> None:
    assert set(scored(nn.Linear(3, 2), data(1))) == {"test/mae_vat", "test/mae_asat"}


def test_the_loss_is_a_mean_over_samples_of_scaled_errors() -> None:
    task = RegressionTask(nn.Linear(3, 2), **NAMES)
    x, y = data(6).tensors
    each = torch.stack([task.training_step((x[i : i + 1], y[i : i + 1]), 0) for i in range(6)])
    assert torch.allclose(task.training_step((x, y), 0), each.mean())
    expected = (task.network(x) - (y - torch.tensor([3.0, 4.0])) / torch.tensor([2.0, 0.5])).square().mean()
    assert torch.allclose(task.training_step((x, y), 0), expected)


def test_trains_privately_and_logs_no_training_metric() -> None:
    task, plugin = RegressionTask(nn.Linear(3, 2), **NAMES, optimizer="sgd", lr=0.1, lr_schedule="cosine"), strategy()
    trainer = fit(task, plugin, DataLoader(data(), batch_size=10, shuffle=True), max_epochs=1)
    assert plugin.ledger.steps == 4
    assert not any(name.startswith("train") for name in trainer.callback_metrics)


def test_hyperparameters_hold_no_network() -> None:
    task = RegressionTask(nn.Linear(3, 2), **NAMES)
    assert "network" not in task.hparams
    assert set(task.state_dict()) == {"network.weight", "network.bias"}
    assert torch.equal(task.predict_step([data(4).tensors[0]], 0), task(data(4).tensors[0]))


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"centre": (3.0,)}, "one public centre"),
        ({"scale": (1.0, 0.0)}, "positive scale"),
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs' is unknown"),
        ({"lr_schedule": "poly"}, "lr_schedule='poly' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(PrivacyConfigError, match=reason):
        RegressionTask(nn.Linear(3, 2), **{**NAMES, **arguments})


def test_targets_are_never_broadcast() -> None:
    task = RegressionTask(nn.Linear(3, 1), **{**NAMES, "targets": ("a",), "centre": (0.0,), "scale": (1.0,)})
    with pytest.raises(PrivacyConfigError, match=r"\(4, 1\) for targets \(4,\)"):
        task.training_step((torch.rand(4, 3), torch.rand(4)), 0)

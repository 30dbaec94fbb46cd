from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy, FairnessMonitor, Groups
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.tasks import MultiLabelTask


def loader(n: int = 40) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    labels = (inputs[:, :2] > 0).float()
    return DataLoader(TensorDataset(inputs, labels, torch.arange(n) % 2), batch_size=10)


def trainer(**settings: object) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, **settings,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("weight", [None, [2.0, 0.5]])
def test_loss_is_binary_cross_entropy_written_out(weight: list[float] | None) -> None:
    task = MultiLabelTask(nn.Linear(4, 2), 2, weight)
    inputs, labels, _ = next(iter(loader()))
    total = 0.0
    for row, truth in zip(task.network(inputs).tolist(), labels.tolist(), strict=True):
        for k, (logit, y) in enumerate(zip(row, truth, strict=True)):
            p = 1 / (1 + math.exp(-logit))
            total -= (weight[k] if weight else 1.0) * y * math.log(p) + (1 - y) * math.log(1 - p)
    assert float(task.training_step((inputs, labels), 0).detach()) == pytest.approx(total / 20, rel=1e-5)


def test_private_training_learns_and_monitors_hear_of_it() -> None:
    torch.manual_seed(0)
    task = MultiLabelTask(nn.Linear(4, 2), 2, lr=1.0, lr_schedule="cosine")
    monitor = FairnessMonitor(Groups({"sex": ["female", "male"]}), "multilabel", class_names=["a", "b"])
    run = trainer(strategy=DPStrategy(noise_multiplier=0.1, delta=1e-3), callbacks=[monitor], max_epochs=15)
    data = loader()
    run.fit(task, data, data)
    (found,) = run.test(task, data, verbose=False)
    assert found["test/accuracy"] > 0.8
    assert found["test/accuracy"] == pytest.approx(monitor.result.overall.accuracy.value)
    inputs, labels, _ = data.dataset.tensors  # type: ignore[attr-defined]
    loss = nn.functional.binary_cross_entropy_with_logits(task.network(inputs), labels)
    assert found["test/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_probabilities_are_predicted_with_and_without_labels() -> None:
    task = MultiLabelTask(nn.Linear(4, 2), 2)
    batch = next(iter(loader()))
    expected = torch.sigmoid(task.network(batch[0]))
    assert torch.equal(task.predict_step(batch, 0), expected)
    assert torch.equal(task.predict_step(batch[0], 0), expected)


def test_class_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="use ClassificationTask"):
        MultiLabelTask(nn.Linear(4, 2), 2).training_step((torch.zeros(3, 4), torch.zeros(3)), 0)


@pytest.mark.parametrize("weight", [[1.0], [1.0, 0.0]])
def test_weights_that_cannot_be_are_refused(weight: list[float]) -> None:
    with pytest.raises(PrivacyConfigError, match="2 positive numbers"):
        MultiLabelTask(nn.Linear(4, 2), 2, weight)


def test_weights_are_no_part_of_a_checkpoint() -> None:
    assert set(MultiLabelTask(nn.Linear(4, 2), 2, [1.0, 2.0]).state_dict()) == {"network.weight", "network.bias"}

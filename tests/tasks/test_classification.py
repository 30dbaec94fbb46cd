"""The classification task under an ordinary Trainer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.tasks import ClassificationTask


def _loader(n: int = 50, batch_size: int = 20, seed: int = 0) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    inputs = torch.randn(n, 4, generator=generator) + 4 * F.one_hot(labels, 4)
    return DataLoader(TensorDataset(inputs, labels), batch_size)


class _Watch(Callback):
    """Everything a logger or a progress bar could have shown during the training epoch, and the learning rates used."""

    def __init__(self) -> None:
        self.train_names: set[str] = set()
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.train_names |= set(trainer.logged_metrics) | set(trainer.progress_bar_metrics)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def _trainer(folder: Path, watch: _Watch, **steps: int) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **steps,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nadam"])
def test_learns_and_reports_the_accuracy_over_all_samples(tmp_path: Path, optimizer: str) -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    task = ClassificationTask(network, lr=0.1, optimizer=optimizer, num_classes=3)  # type: ignore[arg-type]
    trainer = _trainer(tmp_path, _Watch(), max_epochs=20)
    trainer.fit(task, _loader())
    (result,) = trainer.test(task, _loader(seed=1), verbose=False)
    inputs, labels = _loader(seed=1).dataset[:]
    with torch.no_grad():
        logits = network(inputs)
    assert result["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result["test/accuracy"] > 0.8  # chance is one third


def test_no_training_number_is_released(tmp_path: Path) -> None:
    watch = _Watch()
    _trainer(tmp_path, watch, max_epochs=2).fit(
        ClassificationTask(nn.Linear(4, 3), num_classes=3), _loader(), _loader(seed=1)
    )
    assert watch.train_names <= {"val/accuracy", "val/loss"}


@pytest.mark.parametrize("plan", [{"max_epochs": 4}, {"max_steps": 12, "max_epochs": -1}])
def test_cosine_schedule_spans_the_planned_steps(tmp_path: Path, plan: dict[str, int]) -> None:
    watch = _Watch()
    task = ClassificationTask(nn.Linear(4, 3), lr=2.0, lr_schedule="cosine", num_classes=3)
    _trainer(tmp_path, watch, **plan).fit(task, _loader())
    assert watch.rates == pytest.approx([1 + math.cos(math.pi * step / 12) for step in range(12)])


def test_constant_schedule(tmp_path: Path) -> None:
    watch = _Watch()
    _trainer(tmp_path, watch, max_epochs=1).fit(ClassificationTask(nn.Linear(4, 3), lr=0.5, num_classes=3), _loader())
    assert watch.rates == [0.5] * 3


def test_predict_gives_probabilities(tmp_path: Path) -> None:
    outputs = _trainer(tmp_path, _Watch(), max_epochs=1).predict(
        ClassificationTask(nn.Linear(4, 3), num_classes=3), _loader()
    )
    assert outputs is not None
    probabilities = torch.cat([output for output in outputs if isinstance(output, torch.Tensor)])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(50))


@pytest.mark.parametrize("argument", [{"optimizer": "lbfgs"}, {"lr_schedule": "linear"}])
def test_refuses_unknown_choices(argument: dict[str, str]) -> None:
    with pytest.raises(PrivacyConfigError, match="is unknown; choose"):
        ClassificationTask(nn.Linear(4, 3), **argument)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "outputs, classes, labels, message",
    [
        (3, 5, torch.tensor([0, 1]), r"gives \(2, 3\) for 2 samples, and the task has num_classes=5"),
        (3, 3, torch.tensor([0, 3]), r"outside 0 .. 2 .*num_classes= the number of classes"),
        (3, 3, torch.zeros(2, 3), r"shape \(2, 3\) and the type torch.float32.*MultiLabelTask"),
        (3, 3, torch.zeros(2, 1, dtype=torch.int64), r"shape \(2, 1\)"),
    ],
)
def test_classes_that_do_not_fit_are_refused_in_training(
    outputs: int, classes: int, labels: torch.Tensor, message: str
) -> None:
    task = ClassificationTask(nn.Linear(4, outputs), num_classes=classes)
    with pytest.raises(ValueError, match=message):
        task.training_step((torch.zeros(2, 4), labels), 0)

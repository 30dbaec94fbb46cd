from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_dp.data import ArrayDataModule, ArrayDataset, DataCard
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.strategies import DPStrategy
from lightning_dp.tasks import ClassificationTask


class Toy(ArrayDataModule):
    card = DataCard("toy", "none", 20, False, "one patient", "made here")

    def __init__(self, parts: Mapping[str, int]) -> None:
        super().__init__(batch_size=4, has_validation="val" in parts)
        self.parts, self.calls = parts, 0

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        self.calls += 1
        rng = np.random.default_rng(0)
        found: dict[str, np.ndarray[Any, Any]] = {"train/unit_id": np.arange(self.parts["train"]) // 2}
        for part, n in self.parts.items():
            found[f"{part}/inputs"] = rng.normal(size=(n, 3)).astype(np.float32)
            found[f"{part}/labels"] = np.arange(n) % 2
        return found


def trainer(**arguments: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", max_steps=2, **quiet, **arguments)


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize("parts", [{"train": 20, "test": 6}, {"train": 20, "val": 5, "test": 6}])
def test_trains_and_tests_with_or_without_validation(parts: dict[str, int]) -> None:
    task, data = ClassificationTask(nn.Linear(3, 2), num_classes=2), Toy(parts)
    run = trainer()
    run.fit(task, data)
    assert run.test(task, data, verbose=False)[0]["test/accuracy"] >= 0
    assert ("val/accuracy" in run.callback_metrics) is False  # of the last call, test


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_owners_are_a_strategys_units() -> None:
    strategy = DPStrategy(noise_multiplier=1.0, unit="unit_id")
    run = trainer(strategy=strategy)
    run.fit(ClassificationTask(nn.Linear(3, 2), num_classes=2), Toy({"train": 20, "test": 6}))
    assert strategy.settings().dataset_size == 10


def test_samples_are_the_rows() -> None:
    inputs, labels = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    item = ArrayDataset([inputs, labels])[1]
    assert torch.equal(item[0], torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert item[1] == 1


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match=r"\[3, 2\]"):
        ArrayDataset([np.zeros(3), np.zeros(2)])
    with pytest.raises(PrivacyConfigError, match=r"\[3, 4\]"):
        ArrayDataset([np.zeros(3)], np.zeros(4, dtype=np.int64))


def test_a_part_that_is_not_there_is_named() -> None:
    data = Toy({"train": 20})
    with pytest.raises(PrivacyConfigError, match=r"in its part 'train'.*call prepare_data\(\) and setup\(\) first"):
        data.train_dataloader()
    data.setup()
    with pytest.raises(PrivacyConfigError, match="in its part 'test': give the part a size above 0"):
        data.test_dataloader()

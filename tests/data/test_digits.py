"""The digits data module against scikit-learn's own arrays."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from sklearn.datasets import load_digits
from torch.utils.data import RandomSampler, TensorDataset

from lightning_dp.data.digits import DigitsDataModule


def _tensors(dataset: object) -> tuple[torch.Tensor, ...]:
    assert isinstance(dataset, TensorDataset)
    return dataset.tensors


def test_parts_are_the_whole_set_once() -> None:
    module = DigitsDataModule(val_size=100, test_size=300, seed=3)
    module.setup()
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    parts = [_tensors(loader.dataset) for loader in loaders]
    assert [len(labels) for _, labels in parts] == [1397, 100, 300]
    images = torch.cat([images for images, _ in parts])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    rows = np.column_stack([images.flatten(1).numpy() * 16, torch.cat([labels for _, labels in parts]).numpy()])
    bunch = load_digits()
    truth = np.column_stack([bunch.data, bunch.target])
    order, true_order = np.lexsort(rows.T), np.lexsort(truth.T)
    np.testing.assert_array_equal(rows[order], truth[true_order])


def test_training_set_does_not_depend_on_the_order_of_setup_calls() -> None:
    first, second = DigitsDataModule(), DigitsDataModule()
    first.setup("fit")
    second.setup("test")
    second.setup("fit")
    a, b = _tensors(first.train_dataloader().dataset), _tensors(second.train_dataloader().dataset)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_only_the_train_loader_shuffles_and_no_validation_means_no_loader() -> None:
    module = DigitsDataModule(batch_size=64)
    module.setup()
    assert isinstance(module.train_dataloader().sampler, RandomSampler)
    assert not isinstance(module.test_dataloader().sampler, RandomSampler)
    assert not is_overridden("val_dataloader", module)
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (64, *module.input_shape)
    assert labels.dtype == torch.int64


def test_card_names_the_privacy_unit_and_is_frozen() -> None:
    card = DigitsDataModule.card
    assert card.real
    assert card.n == 1797
    assert "privacy unit: one image" in str(card)
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.n = 0  # type: ignore[misc]


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-dp\[recipes\]'"):
        DigitsDataModule().prepare_data()

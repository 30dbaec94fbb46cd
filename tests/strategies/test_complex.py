"""Complex networks through the Trainer: self-check, private steps, and what of BAMStrategy is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_dp import DPStrategy, PrivacyError
from lightning_dp.data import KSpaceDataModule
from lightning_dp.models import ComplexCNN, TwoChannelCNN
from lightning_dp.tasks import ClassificationTask
from tests.strategies.helpers import trainer


def data(**arguments: Any) -> KSpaceDataModule:
    maps: NDArray[np.float32] = np.random.default_rng(0).random((3, 5, 12, 10)).astype(np.float32) / 3
    settings: dict[str, Any] = {"batch_size": 16, "n_subjects": 8, "n_test": 2, "size": 8, "maps": maps}
    return KSpaceDataModule(**{**settings, **arguments})


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize("unit", [None, "unit_id"])
@pytest.mark.parametrize("kind", [ComplexCNN, TwoChannelCNN])
def test_a_complex_network_trains_privately(kind: Any, unit: str | None) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {} if unit is None else {"unit": unit, "max_rows_per_unit": 4}
    private = DPStrategy(noise_multiplier=1.0, physical_batch_size=8, **options)
    task = ClassificationTask(kind(2, 4, widths=(4, 4)), optimizer="adam", lr=0.01, num_classes=4)
    before = [p.detach().clone() for p in task.parameters()]
    run = trainer(private, max_epochs=1, limit_train_batches=2)
    run.fit(task, data(batch_size=2 if unit else 16))
    assert private.ledger.steps == 2
    assert all(bool(torch.isfinite(p).all()) for p in task.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(task.parameters(), before, strict=True))
    assert 0 <= run.test(task, data(), verbose=False)[0]["test/accuracy"] <= 1


class Coupled(ComplexCNN):
    """Phases relative to the batch's mean phase: one sample's gradient depends on the others."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        mean = z.mean(0, keepdim=True)
        return super().forward(z * mean.conj() / (mean.abs() + 1e-3))


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
def test_the_self_check_finds_complex_samples_that_meet() -> None:
    task = ClassificationTask(Coupled(2, 4, widths=(4,)), num_classes=4)
    with pytest.raises(PrivacyError, match="gradient of one sample"):
        trainer(DPStrategy(noise_multiplier=1.0), max_steps=1).fit(task, data())

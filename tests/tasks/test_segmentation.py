"""The segmentation task, plain and private."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy, PrivacyConfigError
from lightning_dp.models import MoNet, UNet
from lightning_dp.tasks import SegmentationTask

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def discs(n: int = 24, dims: int = 2, batch_size: int = 8) -> DataLoader[Any]:
    """Bright balls on noise, every other image without one, two images a volume."""
    generator = torch.Generator().manual_seed(0)
    side = 16 if dims == 2 else 8
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * dims, indexing="ij")
    masks = []
    for i in range(n):
        centre = 0.5 * torch.rand(dims, generator=generator) - 0.25
        squared = torch.stack([(a - c) ** 2 for a, c in zip(axes, centre, strict=True)]).sum(0)
        masks.append((squared < 0.2).long() * (i % 4 != 0))
    target = torch.stack(masks)
    images = target.unsqueeze(1) + 0.3 * torch.randn(n, 1, *[side] * dims, generator=generator)
    return DataLoader(TensorDataset(images, target, torch.arange(n) // 2), batch_size)


@pytest.mark.parametrize("loss", ["dice", "dice_ce"])
def test_learns_bright_discs(loss: Any) -> None:
    torch.manual_seed(0)
    task = SegmentationTask(MoNet(filters=4, depth=1, dropout=0.0), loss, lr=1e-2, lr_schedule="log_linear")
    run = Trainer(max_epochs=15, **QUIET)
    run.fit(task, discs(), discs())
    assert run.callback_metrics["val/dice"] > 0.9
    found = run.test(task, discs(), verbose=False)[0]
    assert set(found) == {"test/dice", "test/dice_volume", "test/loss"}
    assert found["test/dice_volume"] > 0.9
    masks = run.predict(task, discs(8))
    assert masks is not None
    assert masks[0].shape == (8, 16, 16)  # type: ignore[union-attr]
    assert masks[0].max() == 1  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("network", [MoNet, UNet])
def test_private_runs_pass_the_self_check(network: Any, dims: int) -> None:
    strategy = DPStrategy(noise_multiplier=1.0)
    task = SegmentationTask(network(1, 2, dims=dims, filters=4, depth=1), optimizer="sgd")
    Trainer(strategy=strategy, fast_dev_run=True, **QUIET).fit(task, discs(dims=dims), discs(dims=dims))
    assert strategy.ledger.steps == 1


def test_training_logs_nothing() -> None:
    task = SegmentationTask(UNet(filters=4, depth=1))
    run = Trainer(max_epochs=1, **QUIET)
    run.fit(task, discs())
    assert run.callback_metrics == {}


def test_log_linear_rates_fall_tenfold_twice() -> None:
    task = SegmentationTask(UNet(filters=4, depth=1), lr=1e-3, lr_schedule="log_linear")
    rates: list[float] = []

    run = Trainer(max_epochs=4, **QUIET)  # 12 steps
    original = task.training_step

    def step(batch: Any, batch_idx: int) -> Any:
        rates.append(run.optimizers[0].param_groups[0]["lr"])
        return original(batch, batch_idx)

    task.training_step = step  # type: ignore[method-assign]
    run.fit(task, discs())
    expected = [1e-3 * 0.1 ** (k / 6) for k in range(6)] * 2
    assert rates == pytest.approx(expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="dice_ce"):
        SegmentationTask(nn.Identity(), "jaccard")  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="log_linear"):
        SegmentationTask(nn.Identity(), lr_schedule="linear")  # type: ignore[arg-type]


def test_a_network_of_another_number_of_classes_is_refused_before_training() -> None:
    task = SegmentationTask(UNet(1, 3, filters=4, depth=1))
    with pytest.raises(ValueError, match="3 channels of logits, and the task has num_classes=2"):
        Trainer(fast_dev_run=True, **QUIET).fit(task, discs())

"""The response task, plain and private."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy, PrivacyConfigError
from lightning_dp.models import EncoderClassifier, UNet
from lightning_dp.tasks import ResponseTask
from tests.tasks.test_segmentation import QUIET


def bright(n: int = 32) -> DataLoader[Any]:
    """Half of the cubes are brighter than the others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.randn(n, 1, 8, 8, 8, generator=generator) + labels[:, None, None, None, None]
    return DataLoader(TensorDataset(images, labels), 8)


def task(reconstruction: bool = False, **arguments: Any) -> ResponseTask:
    torch.manual_seed(0)
    network = EncoderClassifier(UNet(dims=3, filters=4, depth=1).encoder, reconstruction=reconstruction)
    return ResponseTask(network, **arguments)


@pytest.mark.parametrize("reconstruction", [False, True])
def test_learns_brightness(reconstruction: bool) -> None:
    module, run = task(reconstruction, lr=1e-2), Trainer(max_epochs=6, **QUIET)
    run.fit(module, bright())
    assert run.callback_metrics == {}  # nothing is logged in training
    assert run.test(module, bright(), verbose=False)[0]["test/auroc"] > 0.9
    found = run.predict(module, bright())
    assert found is not None
    assert found[0].shape == (8, 2)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::lightning_dp.errors.PrivacyWarning")
@pytest.mark.parametrize(
    "arguments", [{"reconstruction": True}, {"encoder_lr_factor": 0.0}, {"encoder_lr_factor": 0.1}]
)
def test_private_runs_pass_the_self_check(arguments: dict[str, Any]) -> None:
    module, strategy = task(**arguments), DPStrategy(noise_multiplier=1.0)
    before = {name: value.clone() for name, value in module.network.encoder.state_dict().items()}
    Trainer(strategy=strategy, fast_dev_run=True, **QUIET).fit(module, bright(), bright())
    assert strategy.ledger.steps == 1
    moved = any(not torch.equal(value, before[name]) for name, value in module.network.encoder.state_dict().items())
    assert moved == (arguments.get("encoder_lr_factor") != 0.0)


def test_the_encoder_has_its_own_learning_rate() -> None:
    module = task(lr=1e-2, encoder_lr_factor=0.1, optimizer="sgd")
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, pytest.approx(1e-3)]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in module.network.encoder.parameters()}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="at least 0"):
        task(encoder_lr_factor=-1.0)
    with pytest.raises(PrivacyConfigError, match="3 classes"):
        ResponseTask(EncoderClassifier(UNet().encoder, 3))

"""A Trainer takes the private loader as it is: no warning, no rebuilding, exact resume, workers shut down."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp.sampling import PoissonSampler, PrivateDataLoader, build_private_loader, key_from_seed

# Lightning's own use of torch's pytree, on every fit.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

N, B = 20, 4
SAVED_AT = 7


class Swaps(SingleDeviceStrategy):
    """Swaps the training loader, and counts steps as the trainer does; private in nothing else."""

    def steps_taken(self) -> int:
        assert self.lightning_module is not None
        return self.lightning_module.trainer.global_step

    def process_dataloader(self, dataloader: Any) -> Any:
        return build_private_loader(
            dataloader,
            PoissonSampler(N, B, key_from_seed(0)),
            rank=0,
            world_size=1,
            physical_batch_size=2,
            position=self.steps_taken,
        )


class Records(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.steps: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loader = self.trainer.train_dataloader
        assert isinstance(loader, PrivateDataLoader)
        step = loader.take()
        self.steps.append(step.step)
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == SAVED_AT:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "at.ckpt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        strategy=Swaps("cpu"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )


def loader(workers: int = 0) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(N, 1))
    return DataLoader(data, B, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_follow_each_other(tmp_path: Path, workers: int) -> None:
    model = Records()
    run = trainer(tmp_path, max_epochs=3, limit_train_batches=3)
    run.fit(model, loader(workers))
    assert run.num_training_batches == 3
    assert model.steps == list(range(9))
    assert not multiprocessing.active_children()


def test_resume_in_mid_epoch_is_exact_and_silent(tmp_path: Path) -> None:
    """Warnings are errors here, the one on loaders that cannot resume among them."""
    first, second = Records(), Records()
    trainer(tmp_path, max_steps=SAVED_AT).fit(first, loader())
    assert first.steps == list(range(SAVED_AT))  # the second step of the second epoch
    resumed = trainer(tmp_path, max_epochs=3)
    resumed.fit(second, loader(), ckpt_path=tmp_path / "at.ckpt")
    assert second.steps == list(range(SAVED_AT, 15))
    assert resumed.current_epoch == 3

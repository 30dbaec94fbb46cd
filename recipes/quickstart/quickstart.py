"""Train a small network on scikit-learn's handwritten digits with differential privacy, and say what it cost.

    python recipes/quickstart/quickstart.py

The same run from the command line: lightning-dp fit --config recipes/quickstart/config.yaml
"""

from __future__ import annotations

import logging
import warnings

from lightning.pytorch import Trainer, seed_everything

from lightning_dp import DPStrategy, PrivacyAccountant
from lightning_dp.data import DigitsDataModule
from lightning_dp.models import TanhMLP
from lightning_dp.tasks import ClassificationTask

EPOCHS = 30


def main(epochs: int = EPOCHS) -> tuple[float, DPStrategy]:
    """Trains for ``epochs`` epochs; returns the test accuracy and the strategy with its ledger."""
    quiet()
    seed_everything(0)  # weights and the data split; the privacy noise has no seed to set
    data = DigitsDataModule(batch_size=256)
    model = ClassificationTask(TanhMLP([64, 64, 10]), lr=2.0, momentum=0.9)

    strategy = DPStrategy(eps=3, max_grad_norm=0.1)
    trainer = Trainer(
        strategy=strategy,
        callbacks=[PrivacyAccountant()],
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    (result,) = trainer.test(model, data, verbose=False)
    return result["test/accuracy"], strategy


def quiet() -> None:
    """Leaves out Lightning's advice on data workers and hardware, so that the report stands by itself."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")


if __name__ == "__main__":
    accuracy, private = main()
    print(f"\ntest accuracy {accuracy:.1%}\n{private.privacy_spent()}")

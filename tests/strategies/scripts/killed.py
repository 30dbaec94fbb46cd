"""Trains until it is killed: saves a checkpoint every few steps, and touches a file when it hangs.

Arguments: folder, steps between checkpoints, step at which to hang.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from tests.strategies.helpers import Tiny, loader, strategy, trainer


class Hangs(Tiny):
    def __init__(self, mark: Path, last: int) -> None:
        super().__init__(momentum=0.9)
        self.mark, self.last = mark, last

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == self.last:
            self.mark.touch()
            time.sleep(120)
        return super().training_step(batch, batch_idx)


def main(folder: Path, every: int, last: int) -> None:
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    run = trainer(strategy(eps=3), max_epochs=4, callbacks=[saver], enable_checkpointing=True)
    run.fit(Hangs(folder / "hanging", last), loader(64, 16))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

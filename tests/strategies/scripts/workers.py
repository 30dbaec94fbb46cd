"""Two forked workers; the parent writes what it knows afterwards. Arguments: folder, whether the workers fail."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_dp import PrivacyError
from tests.strategies.helpers import Tiny, flat, loader, strategy, trainer


class Fails(Tiny):
    fails = False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.fails and batch_idx == 2:
            raise KeyError("mine")


def main(folder: Path, fails: bool) -> None:
    module, plugin = Fails(), strategy(delta=1e-3, timeout=timedelta(seconds=60), start_method="fork")
    module.fails, before = fails, flat(module)
    failed = ""
    try:
        trainer(plugin, devices=2).fit(module, loader())
    except Exception as error:
        failed = type(error).__name__
    try:
        eps = plugin.privacy_spent().eps
    except PrivacyError:
        eps = None
    found = {"failed": failed, "eps": eps, "ledger": plugin.ledger.steps, "moved": bool((flat(module) != before).any())}
    (folder / "workers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "fails")

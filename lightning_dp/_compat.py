"""Every private name of Lightning that this package uses, in one place, checked against Lightning 2.6.

When a Lightning release moves one of them, this file is what changes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.distributed import (
    _distributed_is_initialized,
    _get_default_process_group_backend_for_device,
    _init_dist_connection,
    _sync_ddp_if_available,
)
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from typing_extensions import override

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

__all__ = (
    "ReportingLauncher",
    "SubprocessScriptLauncher",
    "batches_until_logging",
    "broadcast_tensors",
    "call_strategy_hook",
    "init_process_group",
    "move_optimizers",
    "names_logged_in_training",
    "nothing_logged",
    "process_group_is_ready",
    "reduce_over_ranks",
    "set_logged_batch",
    "skips_epoch_start",
    "transfer_batch",
)

SubprocessScriptLauncher = _SubprocessScriptLauncher
move_optimizers = _optimizers_to_device
process_group_is_ready = _distributed_is_initialized
reduce_over_ranks = _sync_ddp_if_available


class ReportingLauncher(_MultiProcessingLauncher):
    """Starts workers as Lightning does, and brings the privacy ledger of rank 0 back to the process that started them.

    Workers have their own copy of the strategy. Without this, the parent would say that nothing was spent. The state
    travels as bytes, as Lightning's metrics do: tensors in it must not depend on memory of a process that has ended.
    """

    _strategy: Any

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except BaseException:
            self._strategy.workers_failed()
            raise

    @override
    def get_extra_results(self, trainer: Trainer) -> dict[str, Any]:
        state = io.BytesIO()
        torch.save(self._strategy.state_dict(), state)
        return {**super().get_extra_results(trainer), "strategy": state.getvalue()}

    @override
    def update_main_process_results(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        self._strategy.load_state_dict(torch.load(io.BytesIO(extra.pop("strategy")), weights_only=True))
        super().update_main_process_results(trainer, extra)


def init_process_group(
    environment: ClusterEnvironment, device: torch.device, backend: str | None, timeout: timedelta | None
) -> str:
    """Joins the process group and returns the backend in use (gloo on CPU, NCCL on CUDA unless told otherwise)."""
    reset_seed()
    backend = backend or _get_default_process_group_backend_for_device(device)
    device_id = None if device.type == "cpu" else device
    _init_dist_connection(environment, backend, timeout=timeout, device_id=device_id)
    return backend


def call_strategy_hook(trainer: Trainer, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a strategy hook as the loop does, so that ``self.log`` inside it knows where it is."""
    return call._call_strategy_hook(trainer, name, *args, **kwargs)


def skips_epoch_start(trainer: Trainer) -> bool:
    """Whether a resumed run begins an epoch without ``on_train_epoch_start``: its checkpoint is of an epoch's last batch."""
    loop = trainer.fit_loop
    return bool(loop.restarted_mid_epoch and loop.epoch_loop.batch_progress.is_last_batch)


def transfer_batch(module: LightningModule, batch: Any, device: torch.device) -> Any:
    """Runs the user's three batch-transfer hooks in the loop's order."""
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)


def set_logged_batch(trainer: Trainer, batch: Any) -> None:
    """Tells the result collection which batch the next ``self.log`` calls weigh by."""
    results = trainer._results
    if results is not None:
        results.batch, results.batch_size = batch, None


@contextmanager
def nothing_logged(trainer: Trainer) -> Iterator[None]:
    """Within the block, what ``self.log`` receives in the training loop is forgotten."""
    loop = trainer.fit_loop.epoch_loop
    kept = loop._results
    loop._results = _ResultCollection(training=True)
    loop._results.batch, loop._results.batch_size = kept.batch, kept.batch_size
    try:
        yield
    finally:
        loop._results = kept


def names_logged_in_training(trainer: Trainer) -> set[str]:
    """Names of the metrics that ``self.log`` received in training hooks, of the module and of callbacks."""
    results = trainer.fit_loop.epoch_loop._results
    return {item.meta.name for item in results.values() if not item.meta.fx.startswith(("on_validation", "validation"))}


def batches_until_logging(trainer: Trainer) -> int:
    """How many more training batches end before the loggers get a row; 0: they get one at the end of this batch."""
    if trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
        return sys.maxsize
    return -(trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps  # type: ignore[attr-defined,no-any-return]


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Overwrites each tensor by rank 0's."""
    for tensor in tensors:
        torch.distributed.broadcast(tensor, src=0)

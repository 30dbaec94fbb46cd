"""One process or several, without wrapping the module: the ground that every private strategy stands on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from lightning_dp import _compat
from lightning_dp.gradients.reals import as_real

__all__ = ("ProcessStrategy", "Processes", "StartMethod")

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Where a strategy runs: Lightning's own arguments, normally set by the Trainer."""

    accelerator: Accelerator | None = None
    parallel_devices: list[torch.device] | None = None
    cluster_environment: ClusterEnvironment | None = None
    checkpoint_io: CheckpointIO | None = None
    precision_plugin: Precision | None = None
    process_group_backend: str | None = None
    timeout: timedelta | None = None
    start_method: StartMethod = "popen"


class ProcessStrategy(ParallelStrategy):
    """Runs the unwrapped module in one process, or the same in several joined by a process group.

    With one device there is no launcher and no process group, so it works in a notebook. With several, gradients are
    not reduced in the backward pass, as DistributedDataParallel does: only the clipped and noised sum may cross ranks,
    and the subclass sends it once per step.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__(
            accelerator=processes.accelerator,
            parallel_devices=processes.parallel_devices,
            cluster_environment=processes.cluster_environment,
            checkpoint_io=processes.checkpoint_io,
            precision_plugin=processes.precision_plugin,
        )
        self._num_nodes = 1
        self._backend = processes.process_group_backend
        self._timeout = processes.timeout or timedelta(minutes=30)  # torch's own default
        self._start_method = processes.start_method

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What the strategy has spent, as plain python values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds what another process, or a checkpoint, has spent."""

    @abstractmethod
    def workers_failed(self) -> None:
        """Told when workers ended without reporting what they had spent."""

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """Processes on this machine, one for each device."""
        return len(self.parallel_devices) if self.parallel_devices else 1

    @property
    def is_distributed(self) -> bool:
        """Whether several processes take part; Lightning then shards the evaluation loaders."""
        return self.num_nodes * self.num_processes > 1

    @property
    @override
    def root_device(self) -> torch.device:
        if not self.parallel_devices:
            return torch.device("cpu")
        return self.parallel_devices[self.local_rank]

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.num_nodes * self.num_processes, "rank": self.global_rank}

    def set_world_ranks(self) -> None:
        """Tells the cluster environment who this process is. Called by the Trainer."""
        if self.cluster_environment is not None:
            self.cluster_environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            self.cluster_environment.set_world_size(self.num_nodes * self.num_processes)
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]

    @override
    def _configure_launcher(self) -> None:
        if not self.is_distributed:
            self._launcher = None
        elif self._start_method == "popen":
            assert self.cluster_environment is not None
            self._launcher = _compat.SubprocessScriptLauncher(
                self.cluster_environment, self.num_processes, self.num_nodes
            )
        else:
            self._launcher = _compat.ReportingLauncher(self, start_method=self._start_method)

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        if self.is_distributed:
            self.set_world_ranks()
            assert self.cluster_environment is not None
            self._backend = _compat.init_process_group(
                self.cluster_environment, self.root_device, self._backend, self._timeout
            )

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    def synchronise_model(self) -> None:
        """Gives every rank the parameters and buffers of rank 0: private gradients are applied to equal models."""
        if self.is_distributed and _compat.process_group_is_ready():
            assert self.model is not None
            tensors = [*self.model.parameters(), *self.model.buffers()]
            _compat.broadcast_tensors([as_real(t.detach()) for t in tensors])

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all ranks: a sum, not a mean, so that noise and sensitivity keep their scale."""
        if not self.is_distributed:
            return tensor
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)
        return tensor

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if _compat.process_group_is_ready():
            if torch.distributed.get_backend() == "nccl":
                torch.distributed.barrier(device_ids=[self.root_device.index])
            else:
                torch.distributed.barrier()

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        if not _compat.process_group_is_ready():
            return obj
        box = [obj]
        torch.distributed.broadcast_object_list(box, src)
        return box[0]

    @override
    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        if isinstance(tensor, Tensor) and self.is_distributed:
            return _compat.reduce_over_ranks(tensor, group, reduce_op=reduce_op)
        return tensor

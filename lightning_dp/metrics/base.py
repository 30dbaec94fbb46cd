"""What all metrics of this package share: states that are sums, so that any split over batches and ranks is the same."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torchmetrics
from torch import Tensor
from typing_extensions import override

__all__ = ("SummedMetric",)


class SummedMetric(torchmetrics.Metric):
    """A metric whose states are the fields of a named tuple of tensors, summed over batches and ranks.

    The size of the states is fixed by the settings. A rank without a sample adds zeros: nothing hangs and nothing is
    averaged twice. `result` gives the whole result; `compute` its scalars as a dictionary of tensors, which is what
    ``self.log_dict`` and ``torchmetrics.MetricCollection`` take.

    Sums are float64. On a device without float64 (Apple's MPS) leave the metric on the CPU: inputs are moved to it.
    """

    is_differentiable = False
    full_state_update = False

    def _add_states(self, zeros: NamedTuple) -> None:
        """Declares one summed state for each field; ``zeros`` are the sums of no samples."""
        for name, value in zeros._asdict().items():
            self.add_state(name, default=value, dist_reduce_fx="sum")
        self._counts_type = type(zeros)

    def _states(self) -> Any:
        """The states themselves, as the named tuple that the functional form adds to."""
        return self._counts_type(*(getattr(self, name) for name in self._counts_type._fields))

    def _here(self, value: Any) -> Any:
        """Tensors of the inputs, nested or not, on the metric's device."""
        if isinstance(value, Tensor):
            return value.detach().to(self.device)
        if isinstance(value, dict):
            return {key: self._here(item) for key, item in value.items()}
        return value

    def counts(self) -> Any:
        """The sums so far, of all ranks: the named tuple that the functional form takes. A collective under DDP."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._local_counts()

    def _local_counts(self) -> Any:
        return type(self._states())(*(value.clone() for value in self._states()))

    @abstractmethod
    def _result(self, counts: Any) -> Any:
        """The result object of sums; it has ``scalars()`` and ``plot()``."""

    def take(self) -> Any:
        """The sums so far, of all ranks, and starts afresh. A collective under DDP."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            taken = self._states()
        self.reset()  # gives the states new tensors: the old ones need no copy
        return taken

    def result_of(self, counts: Any) -> Any:
        """The result of sums that were taken."""
        return self._result(counts)

    def scalars(self, counts: Any, measures: frozenset[str]) -> dict[str, float] | None:
        """Some of the result's ``scalars()``, without making the result; None where it has to be made.

        Args:
            counts: sums that were taken.
            measures: first parts of the names.
        """
        return None

    def result(self) -> Any:
        """The result over all samples so far, of all ranks. Every rank must call it: it is a collective under DDP."""
        return self._result(self.counts())

    @override
    def compute(self) -> dict[str, Tensor]:
        # torchmetrics has synchronised by now.
        scalars = self._result(self._local_counts()).scalars()
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in scalars.items()}

    @override
    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The result's picture: the matplotlib figure and axes."""
        fig, ax = self.result().plot(ax=ax)
        return fig, ax

"""What all monitors share: when they listen, which samples count, how results are logged, drawn and kept."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

from lightning_dp.callbacks.extraction import Extract, Predictions, predictions_of
from lightning_dp.callbacks.stages import Stage, StageListener
from lightning_dp.metrics import Groups
from lightning_dp.metrics.base import SummedMetric
from lightning_dp.report import Section

__all__ = ("Monitor", "Stage", "absent_values")

_ENOUGH = 1 << 20  # numbers predicted (samples times classes) that are added to the metric at once: four megabytes
_STEPS = {"val": "validation_step", "test": "test_step"}


class Result(Protocol):
    """A result object of the metrics."""

    def scalars(self) -> dict[str, float]:
        """Named numbers."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything."""
        ...


R = TypeVar("R", bound=Result)


class Monitor(StageListener, Generic[R]):
    """Listens to validation and test steps, adds their samples to a metric, and gives its result at the end of each.

    Every rank adds its own samples, and the sums are reduced once at the end of the stage. Samples that a distributed
    sampler repeats to give each rank as many are not counted twice. Silent during the sanity check. A value that does not
    exist is NaN, and its reason is shown once, whether it is logged or only computed beside what is.

    Args:
        groups: the groups to break down by, or None.
        stages: ``"val"``, ``"test"`` or both.
        extract: makes `Predictions` of a step's outputs and its batch; None: the step returns a dictionary with
            ``"probs"`` or ``"logits"``, ``"target"`` and, where there are groups, ``"groups"``.
        log: names of the measures to log, for example ``["ece"]``; ``["all"]`` for all, None for those of ``few``.
        few: the measures that are usually watched, and whether of each group too. Each logged number costs time in every
            stage.
        prefix: goes before the names, so that two monitors of one kind do not overwrite each other.
        figures: folder for the figures, relative to the Trainer's ``default_root_dir``; None saves none.
        dataloader_idx: which loader to listen to, where there are several.

    Attributes:
        results: stage -> its last result. It is made of the stage's sums when it is asked for.

    Raises:
        ValueError: an unknown stage, or none.
    """

    def __init__(
        self,
        groups: Groups | None,
        stages: Sequence[Stage],
        extract: Extract | None,
        log: Sequence[str] | None,
        few: Mapping[str, bool],
        prefix: str,
        figures: str | Path | None,
        dataloader_idx: int | None,
    ) -> None:
        if not stages or set(stages) - set(get_args(Stage)):
            raise ValueError(f'stages must hold "val" or "test" or both, got {tuple(stages)}.')
        self.groups, self.stages, self.extract = groups, tuple(stages), extract
        self.logged: dict[str, bool] = dict(few) if log is None else dict.fromkeys(log, True)
        self.prefix, self.figures, self.dataloader_idx = prefix, figures, dataloader_idx
        self.results: Mapping[Stage, R] = _Results()
        self._metric: SummedMetric | None = None
        self._waiting: list[Predictions] = []
        self._numbers = 0
        self._latest: Stage | None = None
        self._shown: set[str] = set()

    @property
    def result(self) -> R:
        """The result of the last stage that ended.

        Raises:
            RuntimeError: none has.
        """
        if self._latest is None:
            raise RuntimeError(
                f"{type(self).__name__} has no result yet: run trainer.validate or trainer.test with it among the callbacks, "
                f"with one of its stages {self.stages}."
            )
        return self.results[self._latest]

    # --- what a monitor is ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _new_metric(self, trainer: Trainer) -> SummedMetric:
        """The metric for a stage. It is started afresh."""

    def _hear(self, metric: Any, found: Predictions, trainer: Trainer, batch: Any) -> None:
        """Takes a batch: keeps it until there are enough samples, since many small updates cost more than a few."""
        found = found.kept()
        if self._waiting and not found.goes_with(self._waiting[-1]):
            self._flush(metric)
        self._waiting.append(found)
        self._numbers += found.numbers
        if self._numbers >= _ENOUGH:
            self._flush(metric)

    def _flush(self, metric: Any) -> None:
        parts, self._waiting, self._numbers = self._waiting, [], 0
        if parts:
            self._add(metric, Predictions.joined(parts))

    @abstractmethod
    def _add(self, metric: Any, found: Predictions) -> None:
        """Adds the samples of one or several batches to the metric."""

    @abstractmethod
    def _draw(self, result: R) -> Iterator[tuple[str, Any]]:
        """Names and figures to save."""

    @abstractmethod
    def _section(self, result: R, where: str) -> Section:
        """The part of a report; ``where`` says of which data."""

    def report_sections(self, trainer: Any) -> Sequence[Section]:
        """What a `RiskReport` shows of the last test or, without one, of the last validation; nothing without either."""
        if "test" in self.results:
            return (self._section(self.results["test"], "test"),)
        return (self._section(self.results["val"], "validation"),) if "val" in self.results else ()

    def _named(self, metric: Any, counts: Any, result: Callable[[], R]) -> dict[str, float]:
        """The numbers to log and maybe more; ``result`` is called only if it takes the whole result to know them."""
        found: dict[str, float] | None = metric.scalars(counts, frozenset(self.logged))
        return result().scalars() if found is None else found

    # --- steps ---------------------------------------------------------------------------------------------------------

    @override
    def _start(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        self._metric, self._waiting, self._numbers = None, [], 0  # also drops what a stage that was broken off has left
        if trainer.sanity_checking or stage not in self.stages:
            return
        loaders = _loaders(trainer, stage)
        chosen = self.dataloader_idx
        if chosen is None and len(loaders) > 1:
            raise ValueError(
                f"{type(self).__name__} cannot tell which of {len(loaders)} {stage} loaders to hear, and will not mix them: "
                "give dataloader_idx=, one monitor (with its own prefix=) for each loader."
            )
        if chosen is not None and not 0 <= chosen < max(1, len(loaders)):
            raise ValueError(f"there is no {stage} loader {chosen}: {len(loaders)} are given, numbered from 0.")
        self._metric = self._new_metric(trainer)
        if self._metric.update_called:  # by a stage that was broken off
            self._metric.reset()
        if module.device.type != "mps" and self._metric.device != module.device:  # mps has no float64
            self._metric.to(module.device)

    @override
    def _listen(
        self,
        trainer: Trainer,
        module: LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if self._metric is None or (self.dataloader_idx or 0) != dataloader_idx:
            return
        found = predictions_of(outputs, batch, self.extract, self.groups, _STEPS[stage], type(self).__name__)
        if trainer.world_size > 1:
            found = self._without_repeats(found, _loaders(trainer, stage)[dataloader_idx], batch_idx)
        self._hear(self._metric, found, trainer, batch)

    def _without_repeats(self, found: Predictions, loader: Any, batch_idx: int) -> Predictions:
        sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
        if not isinstance(sampler, DistributedSampler) or size is None:
            return found  # the user's own way of dealing out samples
        start, own = batch_idx * size, real_samples(sampler)
        expected = min(size, len(sampler) - start)
        if len(found) != expected:  # several rows a sample, or another number of samples
            if len(sampler) > own:
                self._warn_once(
                    "the distributed sampler repeats samples so that each rank has as many, and predictions are not one for "
                    "each sample, so the repeated ones are counted twice. Test on one device for exact numbers."
                )
            return found
        return found.first(max(0, own - start))

    @override
    def _finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        metric, self._metric = self._metric, None
        if metric is None:
            return
        self._flush(metric)
        counts = metric.take()
        result: Callable[[], R] = _Later(metric.result_of, counts)
        computed = self._named(metric, counts, result)
        named = {name: value for name, value in computed.items() if self._is_logged(name)}
        assert isinstance(self.results, _Results)
        self.results.put(stage, result)
        self._latest = stage
        start = f"{stage}/{self.prefix + '/' if self.prefix else ''}"
        wanted = {start + name: value for name, value in named.items()}
        # Equal on all ranks already; sync_dist says so to Lightning. batch_size: the numbers are of the whole stage.
        self.log_dict(wanted, sync_dist=True, batch_size=1, add_dataloader_idx=False)  # type: ignore[attr-defined]
        # Of all that was computed: a group without positives matters to whoever reads the result or a report, logged or not.
        absent = {name for name, value in computed.items() if math.isnan(value)} - self._shown
        self._shown |= absent
        reasons = absent_values(result().to_dict()) if absent else []
        new = [reason for reason in reasons if reason not in self._shown]
        if new:
            self._shown |= set(new)
            listed = "\n".join(f"  - {reason}" for reason in new[:20])
            more = f"\n  ... and {len(new) - 20} more (in the result)" if len(new) > 20 else ""
            rank_zero_warn(f"{type(self).__name__}, {stage}: these have no value (NaN):\n{listed}{more}")
        if self.figures is not None and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / self.figures
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in self._draw(result()):
                file = re.sub(r"[^\w.-]+", "-", f"{stage}_{self.prefix + '_' if self.prefix else ''}{name}")
                figure.savefig(folder / f"{file}.png", dpi=150)

    def _is_logged(self, name: str) -> bool:
        measure, _, group = name.partition("/")
        return "all" in self.logged or (measure in self.logged and (not group or self.logged[measure]))

    def _warn_once(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            rank_zero_warn(f"{type(self).__name__}: {text}")


class _Later:
    """A result, made when it is first asked for. A class, since processes that are spawned get callbacks by pickle."""

    def __init__(self, make: Callable[[Any], Any], counts: Any) -> None:
        self._make, self._counts, self._made = make, counts, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make(self._counts)
        return self._made


class _Results(Mapping[Any, Any]):
    """What stages gave, made when it is looked at: a validation of which only numbers are logged need not make it."""

    def __init__(self) -> None:
        self._make: dict[Any, Callable[[], Any]] = {}

    def put(self, stage: Any, make: Callable[[], Any]) -> None:
        """Keeps what makes a stage's result."""
        self._make[stage] = make

    def __getitem__(self, stage: Any) -> Any:
        return self._make[stage]()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def real_samples(sampler: DistributedSampler[Any]) -> int:
    """How many of a rank's samples are its own: those past the data set's end are repeated from the start.

    The sampler deals one card at a time from an order that it has extended, so a rank's repeats come last.
    """
    total = len(sampler.dataset)  # type: ignore[arg-type]
    return min(len(sampler), len(range(sampler.rank, total, sampler.num_replicas)))


def absent_values(plain: Mapping[str, Any]) -> list[str]:
    """``"<measure> of <group>: <reason>"`` for each value that is absent from a result's plain form."""
    found: list[str] = []

    def walk(item: Any, path: tuple[str, ...]) -> None:
        if isinstance(item, Mapping):
            name = item.get("group") or item.get("outcome") or item.get("rule")
            path = (*path, str(name)) if name else path
            if item.get("reason") and item.get("value", 0) is None:
                what = [str(item["name"])] if "name" in item else []
                found.append(f"{', '.join(dict.fromkeys([*what, *reversed(path)]))}: {item['reason']}")
                return
            for key, value in item.items():
                # An empty bin is no absent result, and everybody together has no other group to differ from.
                if key != "bins" and not (path[:1] == ("overall",) and key.endswith("parity_difference")):
                    walk(value, (*path, key) if isinstance(value, Mapping) else path)
        elif isinstance(item, list):
            for value in item:
                walk(value, path)

    walk(plain, ())
    return list(dict.fromkeys(found))


def _loaders(trainer: Trainer, stage: Stage) -> list[Any]:
    def flat(item: Any) -> Iterator[Any]:
        if isinstance(item, (Mapping, list, tuple)):
            for inner in item.values() if isinstance(item, Mapping) else item:
                yield from flat(inner)
        elif item is not None:
            yield item

    return list(flat(trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders))

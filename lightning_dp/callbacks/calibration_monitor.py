"""Calibration of every validation and test, by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_dp.callbacks.extraction import Extract, Predictions
from lightning_dp.callbacks.monitor import Monitor, Stage
from lightning_dp.callbacks.sections import calibration_section
from lightning_dp.metrics import Calibration, CalibrationResult, Groups
from lightning_dp.metrics.functional.outcomes import Task
from lightning_dp.report import Section

__all__ = ("CalibrationMonitor",)


#: What is logged unless other names are given, and whether of each group.
FEW = {"ece": True, "brier": False, "nll": False}


class CalibrationMonitor(Monitor[CalibrationResult]):
    """ECE, MCE, adaptive and classwise ECE, Brier score and NLL, over all samples and by group, after every stage.

    Attach it to any Trainer, private or not. It reads what ``validation_step`` and ``test_step`` return: a dictionary with
    ``"probs"`` or ``"logits"``, ``"target"`` and, with groups, ``"groups"``. Logs ``val/ece``, ``val/ece/<group>`` and so
    on. It protects nobody: eps is about training data, and these are exact numbers of the data that are evaluated.

    Args:
        task: "multiclass", "binary" or "multilabel".
        num_classes: number of classes, or of labels.
        class_names: their names.
        groups: the groups, ``Groups({"sex": ["female", "male"]})``; None for all samples together.
        n_bins: bins of every binned measure.
        confidence: level of the intervals.
        stages: ``"val"``, ``"test"`` or both.
        extract: makes `Predictions` of a step's outputs and its batch, where the step returns something else.
        log: names of the measures to log, ``["all"]`` for all; None: ``ece``, ``brier`` and ``nll``.
        prefix: goes before the logged names.
        figures: folder for the reliability diagrams, relative to the Trainer's ``default_root_dir``; None saves none.
        dataloader_idx: which loader to listen to, where there are several.

    Attributes:
        results: stage -> its last `CalibrationResult`.

    Raises:
        ValueError: in the stage, for a missing key (the message shows the fix), labels outside the range, NaN, values that
            are no probabilities, or a level that was not named in ``groups``.

    Example:
        >>> monitor = CalibrationMonitor("binary", groups=Groups({"sex": ["female", "male"]}))
        >>> monitor.stages
        ('val', 'test')
    """

    def __init__(
        self,
        task: Task = "multiclass",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        n_bins: int = 15,
        confidence: float = 0.95,
        *,
        stages: Sequence[Stage] = ("val", "test"),
        extract: Extract | None = None,
        log: Sequence[str] | None = None,
        prefix: str = "",
        figures: str | Path | None = None,
        dataloader_idx: int | None = None,
    ) -> None:
        super().__init__(groups, stages, extract, log, FEW, prefix, figures, dataloader_idx)
        self._settings = (task, num_classes, class_names, groups, n_bins, confidence)
        self._own = Calibration(*self._settings)

    @override
    def _new_metric(self, trainer: Trainer) -> Calibration:
        return self._own

    @override
    def _add(self, metric: Calibration, found: Predictions) -> None:
        if found.target is None:
            raise ValueError("calibration needs the truth: extract= gave Predictions(target=None).")
        metric.update(found.probabilities(metric.outcomes.task), found.target, found.groups)

    @override
    def _draw(self, result: CalibrationResult) -> Iterator[tuple[str, Any]]:
        yield "calibration", result.plot()[0]

    @override
    def _section(self, result: CalibrationResult, where: str) -> Section:
        return calibration_section(result, where, self.prefix)

    def plot(self, group: str | None = None, ax: Any = None) -> tuple[Any, Any]:
        """The last result's reliability diagram of one group, or of all in one picture: ``(fig, ax)``."""
        return self.result.plot(group, ax)

"""Gaps between groups after every validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_dp.callbacks.extraction import Extract, Predictions
from lightning_dp.callbacks.monitor import Monitor, Stage
from lightning_dp.callbacks.sections import fairness_section
from lightning_dp.metrics import Fairness, FairnessResult, Groups
from lightning_dp.metrics.functional.outcomes import Task
from lightning_dp.report import Section

__all__ = ("FairnessMonitor",)


#: What is logged unless other names are given, of each group too where it has a value for each; and with it for a binary task.
FEW = ("accuracy", "accuracy_difference", "worst_group_accuracy")
GAPS = (
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "auroc_gap",
)


class FairnessMonitor(Monitor[FairnessResult]):
    """Accuracy, rates and AUROC of every group, and the gaps between groups, after every stage.

    Attach it to any Trainer, private or not. It reads what ``validation_step`` and ``test_step`` return: a dictionary with
    ``"probs"`` or ``"logits"``, ``"target"`` and ``"groups"`` (codes or names, or a dictionary attribute -> codes or names).
    Logs ``val/demographic_parity_difference``, ``val/accuracy_parity_difference/<group>`` and so on. A group without
    samples stays a row, with n = 0 and NaN. The numbers protect nobody: eps is about training data alone.

    Args:
        groups: the groups, ``Groups({"sex": ["female", "male"], "age": ["<60", ">=60"]})``; of several attributes all
            combinations, and ``result.by("sex")`` gives those of one.
        task: "binary", "multiclass" or "multilabel".
        num_classes: number of classes, or of labels.
        class_names: their names.
        threshold: a probability above it is a positive prediction.
        min_count: smaller groups are left out of the gaps, by name.
        confidence: level of the intervals.
        n_boot: bootstrap draws for the intervals of gaps; 0 for none.
        stages: ``"val"``, ``"test"`` or both.
        extract: makes `Predictions` of a step's outputs and its batch, where the step returns something else.
        log: names of the measures to log, ``["all"]`` for all; None: accuracies and their differences and, of a binary task,
            the gaps between groups.
        prefix: goes before the logged names.
        figures: folder for the figures, relative to the Trainer's ``default_root_dir``; None saves none.
        dataloader_idx: which loader to listen to, where there are several.

    Attributes:
        results: stage -> its last `FairnessResult`.

    Raises:
        ValueError: in the stage, for a missing key (the message shows the fix), labels outside the range, NaN, values that
            are no probabilities, or a level that was not named in ``groups``.

    Example:
        >>> monitor = FairnessMonitor(Groups({"sex": ["female", "male"]}), stages=["test"])
        >>> monitor.groups.names
        ('female', 'male')
    """

    def __init__(
        self,
        groups: Groups,
        task: Task = "binary",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        threshold: float = 0.5,
        min_count: int = 0,
        confidence: float = 0.95,
        n_boot: int = 1000,
        *,
        stages: Sequence[Stage] = ("val", "test"),
        extract: Extract | None = None,
        log: Sequence[str] | None = None,
        prefix: str = "",
        figures: str | Path | None = None,
        dataloader_idx: int | None = None,
    ) -> None:
        few = (*FEW, *GAPS) if task == "binary" else FEW  # of several outcomes there are many
        super().__init__(groups, stages, extract, log, dict.fromkeys(few, True), prefix, figures, dataloader_idx)
        self._own = Fairness(groups, task, num_classes, class_names, threshold, min_count, confidence, n_boot)

    @override
    def _new_metric(self, trainer: Trainer) -> Fairness:
        return self._own

    @override
    def _add(self, metric: Fairness, found: Predictions) -> None:
        if found.target is None:
            raise ValueError("fairness needs the truth: extract= gave Predictions(target=None).")
        metric.update(found.probabilities(metric.outcomes.task), found.target, found.groups)

    @override
    def _draw(self, result: FairnessResult) -> Iterator[tuple[str, Any]]:
        yield "fairness_accuracy", result.plot("accuracy")[0]
        for outcome in result.outcomes if len(result.outcomes) <= 10 else ():
            name = "" if len(result.outcomes) == 1 else f"_{outcome}"
            yield f"fairness_selection_rate{name}", result.plot("selection_rate", outcome)[0]

    @override
    def _section(self, result: FairnessResult, where: str) -> Section:
        return fairness_section(result, where, self.prefix)

    def plot(self, measure: str = "accuracy", outcome: str | None = None, ax: Any = None) -> tuple[Any, Any]:
        """One measure of all groups of the last result, with intervals: ``(fig, ax)``."""
        return self.result.plot(measure, outcome, ax)

"""LightningModules used by the recipes; ordinary ones, with nothing private about them. One task, one file."""

from __future__ import annotations

from lightning_dp.tasks.classification import ClassificationTask
from lightning_dp.tasks.multilabel import MultiLabelTask

__all__ = (
    "ClassificationTask",
    "MultiLabelTask",
)

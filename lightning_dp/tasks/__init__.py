"""LightningModules used by the recipes; ordinary ones, with nothing private about them. One task, one file."""

from __future__ import annotations

from lightning_dp.tasks.classification import ClassificationTask
from lightning_dp.tasks.regression import RegressionTask

__all__ = ("ClassificationTask", "RegressionTask")

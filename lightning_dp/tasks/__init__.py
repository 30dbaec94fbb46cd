"""LightningModules used by the recipes; ordinary ones, with nothing private about them. One task, one file."""

from __future__ import annotations

from lightning_dp.tasks.classification import ClassificationTask
from lightning_dp.tasks.detection import DetectionTask
from lightning_dp.tasks.multilabel import MultiLabelTask
from lightning_dp.tasks.regression import RegressionTask
from lightning_dp.tasks.response import ResponseTask
from lightning_dp.tasks.segmentation import SegmentationTask

__all__ = (
    "ClassificationTask",
    "DetectionTask",
    "MultiLabelTask",
    "RegressionTask",
    "ResponseTask",
    "SegmentationTask",
)

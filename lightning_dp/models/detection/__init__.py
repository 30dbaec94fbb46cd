"""A small anchor-free detector: the network, its training targets and loss, and the way back to boxes."""

from __future__ import annotations

from lightning_dp.models.detection.decoding import Detections, decode, suppress
from lightning_dp.models.detection.loss import detection_loss
from lightning_dp.models.detection.network import AnchorFreeDetector
from lightning_dp.models.detection.padding import PADDING, check_targets, pad_targets
from lightning_dp.models.detection.targets import Assignment, assign

__all__ = (
    "PADDING",
    "AnchorFreeDetector",
    "Assignment",
    "Detections",
    "assign",
    "check_targets",
    "decode",
    "detection_loss",
    "pad_targets",
    "suppress",
)

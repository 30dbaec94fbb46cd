"""Chest X-rays: a simulator with real masks and demographics and a known unfairness, and a reader of real folders."""

from __future__ import annotations

from lightning_dp.data.chest_xray.folder import ChestXRayFolderDataModule
from lightning_dp.data.chest_xray.module import ChestXRayDataModule
from lightning_dp.data.chest_xray.observer import FaintFindings, ideal_accuracy, parity_differences
from lightning_dp.data.chest_xray.simulator import Pictures, simulate
from lightning_dp.data.chest_xray.tables import ATTRIBUTES, FINDINGS, Visits, age_bin, choose_patients

__all__ = (
    "ATTRIBUTES",
    "FINDINGS",
    "ChestXRayDataModule",
    "ChestXRayFolderDataModule",
    "FaintFindings",
    "Pictures",
    "Visits",
    "age_bin",
    "choose_patients",
    "ideal_accuracy",
    "parity_differences",
    "simulate",
)

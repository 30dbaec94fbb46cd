"""Body surfaces with fat volumes: geometry, simulated and real meshes, and their data module."""

from __future__ import annotations

from lightning_dp.data.bodies.module import BodyFatDataModule

__all__ = ("BodyFatDataModule",)

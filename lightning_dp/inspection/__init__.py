"""What the engine would do with a network: a dry run and its report, before anything is trained."""

from __future__ import annotations

from lightning_dp.inspection.dry_run import inspect
from lightning_dp.inspection.report import Inspection, InspectionRow, Problem

__all__ = ("Inspection", "InspectionRow", "Problem", "inspect")

"""Simulated computed tomography of the abdomen: a stand-in for data that cannot be shipped."""

from __future__ import annotations

from lightning_dp.data.abdomen.module import AbdominalPhantom, PancreasResponse
from lightning_dp.data.abdomen.response import ResponseModel

__all__ = ("AbdominalPhantom", "PancreasResponse", "ResponseModel")

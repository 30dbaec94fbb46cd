"""Networks for volumes ``(N, C, Z, X, Y)``: 2D networks on slices, volumetric baselines, and what a slice matters."""

from __future__ import annotations

from lightning_dp.models.volumes.convert import ACSConv3d, VolumeNet, volumetric
from lightning_dp.models.volumes.encoder import SliceEncoder
from lightning_dp.models.volumes.figure import plot_slice_weights
from lightning_dp.models.volumes.hirescam import hirescam, slice_mass
from lightning_dp.models.volumes.importance import slice_ranks, spearman, top_k_overlap
from lightning_dp.models.volumes.network import SliceNet

__all__ = (
    "ACSConv3d",
    "SliceEncoder",
    "SliceNet",
    "VolumeNet",
    "hirescam",
    "plot_slice_weights",
    "slice_mass",
    "slice_ranks",
    "spearman",
    "top_k_overlap",
    "volumetric",
)

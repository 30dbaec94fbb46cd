"""Normalisation layers of any shape agree with the plain loop."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.gradients import UnitMap
from tests.gradients.rules.agreement import assert_agrees, row_counts, unit_maps


def check(module: nn.Module, x: Tensor, units: UnitMap) -> None:
    for p in module.parameters():
        nn.init.normal_(p)
    assert_agrees(nn.Sequential(module, nn.Tanh()), lambda m: m(x), units)


@settings(max_examples=60)
@given(
    data=st.data(),
    units=unit_maps(),
    kind=st.sampled_from(["layer", "layer without bias", "rms"]),
    before=st.lists(st.integers(1, 4), max_size=2),
    own=st.lists(st.integers(2, 4), min_size=1, max_size=2),
)
def test_norms_over_the_last_axes_agree(
    data: st.DataObject, units: UnitMap, kind: str, before: list[int], own: list[int]
) -> None:
    module = nn.RMSNorm(own) if kind == "rms" else nn.LayerNorm(own, bias=kind == "layer")
    check(module, torch.randn(data.draw(row_counts(units)), *before, *own), units)


@settings(max_examples=60)
@given(data=st.data(), units=unit_maps(), groups=st.integers(1, 2), spatial=st.lists(st.integers(2, 4), max_size=3))
def test_group_norms_agree(data: st.DataObject, units: UnitMap, groups: int, spatial: list[int]) -> None:
    check(nn.GroupNorm(groups, 4), torch.randn(data.draw(row_counts(units)), 4, *spatial), units)


@settings(max_examples=30)
@given(data=st.data(), units=unit_maps(), spatial=st.lists(st.integers(2, 4), min_size=1, max_size=3))
def test_instance_norms_agree(data: st.DataObject, units: UnitMap, spatial: list[int]) -> None:
    module = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(spatial) - 1](3, affine=True)
    check(module, torch.randn(data.draw(row_counts(units)), 3, *spatial), units)

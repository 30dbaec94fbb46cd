"""Inner products of patches from those of pixels: equal to those of the patches themselves, and so are the norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.gradients.memory import Memory
from lightning_dp.gradients.rules.conv import ConvGeometry, ConvWeight
from lightning_dp.gradients.rules.pixel_gram import patch_gram, pixel_gram_cost

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def weight_of(module: nn.Module, x: Tensor, units: int) -> ConvWeight:
    """The contribution of a convolution's weight, for random output gradients."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    geometry = ConvGeometry(module)
    grad = torch.randn_like(module(x))
    padded = geometry.pad(x)
    by_unit = (t.view(units, -1, *t.shape[1:]) for t in (padded, grad))
    return ConvWeight(*by_unit, module.weight.shape, geometry)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    dims=st.integers(1, 3),
    groups=st.integers(1, 2),
    fold=st.integers(1, 2),
    strided=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "same"]),
)
def test_norms_without_patches_are_those_of_the_gradients(
    data: st.DataObject, dims: int, groups: int, fold: int, strided: bool, mode: str
) -> None:
    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    strided = strided and mode != "same"
    kernel = sizes(1, 4)
    if mode == "same":  # even ones warn
        kernel = tuple(size | 1 for size in kernel)
    module = KINDS[dims](
        2 * groups, 3 * groups, kernel, sizes(1, 3) if strided else 1, "same" if mode == "same" else sizes(0, 2),
        1 if strided else sizes(1, 2), groups, False, padding_mode="reflect" if mode == "reflect" else "zeros",
    ).double()  # fmt: skip
    x = torch.randn(3 * fold, 2 * groups, *sizes(7, 9), dtype=torch.float64)
    weight = weight_of(module, x, 3)
    assume(weight.route != "direct" and max(kernel) > 1)
    assert weight._by_pixels
    weight.route = "gram"
    truth = weight.per_unit(0, 3).flatten(1).square().sum(1)
    assert torch.allclose(weight.repaired(weight.squared_norms()), truth, rtol=1e-9)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_matrix_is_that_of_the_patches(stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 3, 7, 8, dtype=torch.float64)
    patches = F.unfold(x[:, 0], (3, 4), padding=(1, 2), stride=stride)
    out = [(7 + 2 - 3) // stride + 1, (8 + 4 - 4) // stride + 1]
    gram = patch_gram(x, 1, out, (3, 4), (stride, stride), (1, 1), (1, 2))
    assert torch.allclose(gram, patches.mT @ patches, rtol=1e-12, atol=1e-12)


def test_the_cost_counts_products_and_the_largest_matrix() -> None:
    """A kernel of four and a stride of two: four phases with two elements along each axis, taken as one input."""
    cost, largest = pixel_gram_cost(1, 16, (12, 12), (5, 5), (4, 4), (2, 2))
    assert largest == 36**2
    assert cost > 36**2 * 16 * 4
    cost, largest = pixel_gram_cost(2, 8, (9, 9), (9, 9), (3, 3), (1, 1))
    assert largest == 162**2


@pytest.mark.parametrize("shape", [(256, 256, 8, 1, 1), (64, 64, 12, 1, 1), (32, 64, 16, 2, 1), (128, 128, 2, 1, 84)])
def test_in_float32_and_by_chunks_norms_agree(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs, outputs, size, stride, fold = shape
    module = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    weight = weight_of(module, torch.randn(6 * fold, inputs, size, size), 6)
    memory = Memory(1 << 20)
    memory.begin(0)
    weight.choose_route(memory)
    weight.route = "gram"
    truth = weight.per_unit(0, 6).double().flatten(1).square().sum(1)
    assert torch.allclose(weight.squared_norms().double(), truth, rtol=1e-5)


def test_deep_layers_take_the_matrices() -> None:
    """Many channels on few positions: their gradients would take 50 MB, and are not built."""
    weight = weight_of(nn.Conv2d(256, 256, 3, padding=1, bias=False), torch.randn(20, 256, 8, 8), 20)
    weight.choose_route(Memory(1 << 30))
    assert weight.route == "gram"

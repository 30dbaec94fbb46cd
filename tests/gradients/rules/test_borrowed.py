"""What a user registered with Opacus is used here, unchanged; what Opacus registered itself is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import opacus.grad_sample
import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping, register_grad_sampler
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from lightning_dp.gradients.rules import find_rule
from tests.gradients.rules.agreement import assert_agrees


class Scale(nn.Module):
    """The layer of Opacus' tutorial: a weight for each feature, and an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.offset = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.offset


class Sigmoid(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.sigmoid().T + self.bias


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    tables = [GradSampleModule.GRAD_SAMPLERS, GradSampleModuleFastGradientClipping.GRAD_SAMPLERS]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def scale_sampler(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    found = {}
    if layer.gamma.requires_grad:
        found[layer.gamma] = torch.einsum("n...i,n...i->ni", activations[0], backprops)
    if layer.offset.requires_grad:
        found[layer.offset] = torch.einsum("n...i->ni", backprops)
    return found


def sigmoid_sampler(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    slope = layer.weight.sigmoid() * (1 - layer.weight.sigmoid())
    outer = torch.einsum("n...i,n...j->nij", backprops, activations[0])
    return {layer.weight: outer * slope, layer.bias: torch.einsum("n...i->ni", backprops)}


def spied(sampler: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def spy(layer: Any, activations: list[Tensor], backprops: Tensor) -> Any:
        calls.append(type(layer).__name__)
        return sampler(layer, activations, backprops)

    return spy


@pytest.mark.parametrize(
    "units", [UnitMap(6), UnitMap(3), UnitMap(3, torch.tensor([0, 2, 0, 1, 2, 2]))], ids=["rows", "pairs", "ragged"]
)
def test_a_registered_function_is_used_and_agrees(units: UnitMap) -> None:
    calls: list[str] = []
    register_grad_sampler(Scale)(spied(scale_sampler, calls))
    register_grad_sampler(Sigmoid)(spied(sigmoid_sampler, calls))
    torch.manual_seed(0)
    module, x = nn.Sequential(Scale(), nn.Linear(4, 4), nn.Tanh(), Sigmoid(4, 3)), torch.randn(6, 5, 4)
    assert_agrees(module, lambda m: m(x), units)
    assert sorted(calls) == ["Scale", "Sigmoid"]
    module[0].gamma.requires_grad_(False)
    assert_agrees(module, lambda m: m(x), units)


def test_a_function_may_call_the_layer() -> None:
    def by_repetition(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        rows: dict[nn.Parameter, list[Tensor]] = {layer.gamma: [], layer.offset: []}
        for x, grad in zip(activations[0], backprops, strict=True):
            with torch.enable_grad():
                found = torch.autograd.grad(layer(x[None]), list(rows), grad[None])
            for kept, gradient in zip(rows.values(), found, strict=True):
                kept.append(gradient)
        return {parameter: torch.stack(kept) for parameter, kept in rows.items()}

    register_grad_sampler(Scale)(by_repetition)
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    assert_agrees(nn.Sequential(nn.Linear(4, 4), Scale(), nn.Tanh()), lambda m: m(x), UnitMap(4))


def test_own_rules_come_first_and_opacus_own_functions_do_not_count() -> None:
    register_grad_sampler(nn.Linear)(scale_sampler)
    rule = find_rule(nn.Linear(2, 2))
    assert rule is not None
    assert rule.__name__ == "linear_rule"
    assert find_rule(Scale()) is None
    register_grad_sampler(Scale)(opacus.grad_sample.linear.compute_linear_grad_sample)
    assert find_rule(Scale()) is None
    register_grad_sampler(Scale)(scale_sampler)
    assert find_rule(Scale()) is not None
    patched, subclass = Scale(), type("Other", (Scale,), {})()
    patched.forward = lambda x: x * patched.gamma  # type: ignore[method-assign]
    assert find_rule(patched) is None
    assert find_rule(subclass) is None


def test_without_opacus_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    register_grad_sampler(Scale)(scale_sampler)
    monkeypatch.delitem(sys.modules, "opacus.grad_sample")
    assert find_rule(Scale()) is None


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda m, a, b: {m.gamma: a[0] * b}, "other parameters than the layer's trainable ones \\(gamma, offset\\)"),
        (lambda m, a, b: {m.gamma: (a[0] * b).sum(0), m.offset: b}, r"shape \(4,\) for gamma"),
    ],
    ids=["one is missing", "summed over the batch"],
)
def test_a_function_of_the_wrong_kind_is_refused_by_name(sampler: Callable[..., Any], message: str) -> None:
    register_grad_sampler(Scale)(sampler)
    module = nn.Sequential(Scale())
    with (
        GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine,
        pytest.raises(PrivacyError, match=rf"0 \(Scale\): the function registered with Opacus.*{message}"),
    ):
        engine.backward(module(torch.randn(5, 4)).square().mean(), 5)

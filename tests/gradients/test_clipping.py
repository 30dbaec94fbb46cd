"""Bounds for single layers: who gets which, that nobody goes without, and that the sensitivity is the root of the squares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from tests.gradients.oracle import relative_error, squared_loss, unit_gradients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def clipped(module: nn.Module, clipping: Clipping, x: Tensor, y: Tensor) -> list[Tensor]:
    with GradientEngine(module, clipping, noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, x, y), len(x))
        return engine.clipped_sum()


def test_each_group_is_clipped_by_itself_at_its_own_bound() -> None:
    """Against a plain loop over samples; the names are a parameter, a module and the rest."""
    module, x, y = network(), 5 * torch.randn(4, 6), torch.linspace(-1, 1, 4)
    bounds = {"0.bias": 0.2, "3": 0.7, "*": 0.4}
    members = {"0.bias": ["0.bias"], "3": ["3.weight", "3.bias"], "*": ["0.weight", "2.weight", "2.bias"]}
    names = [name for name, _ in module.named_parameters()]
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for gradients in unit_gradients(module, squared_loss, x, y):
        unit = dict(zip(names, gradients, strict=True))
        for pattern, bound in bounds.items():
            norm = math.sqrt(sum(float(unit[name].double().square().sum()) for name in members[pattern]))
            for name in members[pattern]:
                total[name] += unit[name] * min(1.0, bound / norm)
    found = clipped(module, Clipping.of(bounds, "per_layer"), x, y)
    assert relative_error(found, list(total.values())) < 1e-4


@settings(max_examples=40)
@given(
    bounds=st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10), st.floats(1e-3, 10)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e15, math.inf, math.nan]),
)
def test_one_unit_moves_the_sum_by_at_most_the_root_of_the_sum_of_squares(
    bounds: tuple[float, float, float], scale: float
) -> None:
    module, x, y = network(), torch.randn(3, 6), torch.tensor([-1.0, 0.5, 1.0])
    x[0] *= scale
    clipping = Clipping.of(dict(zip(("0", "2", "3"), bounds, strict=True)), "per_layer")
    assert clipping.sensitivity == pytest.approx(math.sqrt(sum(b * b for b in bounds)), rel=1e-12)
    assert clipping.bounds(3) == pytest.approx(bounds)
    moved = [
        a - b for a, b in zip(clipped(module, clipping, x, y), clipped(module, clipping, x[1:], y[1:]), strict=True)
    ]
    for layer, bound in zip((moved[:2], moved[2:4], moved[4:]), bounds, strict=True):
        assert float(torch.cat([g.flatten().double() for g in layer]).norm()) <= bound * (1 + 1e-4)


def test_a_saturated_unit_reaches_every_bound() -> None:
    """The bound is not smaller than it says: noise is paid for all of it."""
    module, x = network(), 1e3 * torch.ones(1, 6)
    (w0, b0, *_, w3, b3) = clipped(module, Clipping.of({"0": 0.3, "*": 0.4}, "per_layer"), x, torch.ones(1))
    assert math.hypot(float(w0.norm()), float(b0.norm())) <= 0.3 * (1 + 1e-5)
    assert math.hypot(float(w3.norm()), float(b3.norm())) <= 0.4 * (1 + 1e-5)


def test_the_noise_follows_the_root_of_the_sum_of_squares() -> None:
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    clipping = Clipping.of({"0": 3.0, "1": 4.0}, "per_layer")
    with GradientEngine(module, clipping, noise_multiplier=2.0, expected_batch_size=4) as engine:
        engine.write_gradients()
    for p in (module[0].weight, module[1].weight):
        assert p.grad is not None
        assert float(p.grad.std()) == pytest.approx(2.0 * 5.0 / 4, rel=0.05)


def test_the_first_name_that_fits_counts() -> None:
    clipping = Clipping.of({"0.weight": 1.0, "*.bias": 2.0, "*": 3.0}, "per_layer")
    module = network()
    groups, number = clipping.groups(module)
    assert number == 3
    names = dict(module.named_parameters())
    assert {name: groups[p] for name, p in names.items()} == {
        "0.weight": 0, "0.bias": 1, "2.weight": 2, "2.bias": 1, "3.weight": 2, "3.bias": 1,
    }  # fmt: skip


def test_a_name_is_not_a_prefix_of_letters() -> None:
    module = nn.ModuleDict({"net": nn.Linear(2, 2), "network": nn.Linear(2, 2)})
    with pytest.raises(PrivacyConfigError, match=r"no bound for network\.weight"):
        Clipping.of({"net": 1.0}, "per_layer").groups(module)


def test_a_frozen_group_keeps_its_share() -> None:
    """Bounds are fixed beforehand: what is frozen now may be unfrozen later, and nobody else's bound moves."""
    module = network()
    module[0].requires_grad_(False)
    clipping = Clipping.of({"0": 1.0, "*": 2.0}, "per_layer")
    groups, number = clipping.groups(module)
    assert number == 2
    assert set(groups.values()) == {1}
    clipped(module, clipping, torch.randn(2, 6), torch.ones(2))


@pytest.mark.parametrize(
    ("bounds", "name", "message"),
    [
        ({"0": 1.0}, "per_layer", r"no bound for 2\.weight, 2\.bias, 3\.weight, 3\.bias"),
        ({"0": 1.0, "head": 1.0, "*": 1.0}, "per_layer", "bounds to head, which no parameter is called"),
        ({"*": 1.0, "0": 1.0}, "per_layer", "bounds to 0, which no parameter is called"),
        ({"*": 1.0}, "flat", "need clipping='per_layer'"),
        ({"*": 1.0}, "automatic", "need clipping='per_layer'"),
        ({}, "per_layer", "bounds nothing"),
        ({"0": 0.0, "*": 1.0}, "per_layer", "every layer needs one bound"),
        ({"0": math.inf, "*": 1.0}, "per_layer", "every layer needs one bound"),
        ({"0": math.nan, "*": 1.0}, "per_layer", "every layer needs one bound"),
        ({"0": True, "*": 1.0}, "per_layer", "every layer needs one bound"),
        ({"0": "1", "*": 1.0}, "per_layer", "every layer needs one bound"),
    ],
)
def test_nothing_is_left_without_a_bound(bounds: Mapping[str, float], name: str, message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        Clipping.of(bounds, name).groups(network())  # type: ignore[arg-type]


def test_a_parameter_that_is_unfrozen_without_a_bound_is_refused_in_the_step() -> None:
    module = network()
    module[3].requires_grad_(False)
    with GradientEngine(
        module, Clipping.of({"0": 1.0, "2": 1.0}, "per_layer"), noise_multiplier=0.0, expected_batch_size=1
    ) as engine:
        module[3].requires_grad_(True)
        with pytest.raises(PrivacyConfigError, match="no bound for"):
            engine.backward(squared_loss(module, torch.randn(2, 6), torch.ones(2)), 2)

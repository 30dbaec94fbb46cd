"""Parameters read by another module than their owner: followed there from the second pass on, or refused for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, RowMemory
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients

WIDTH = 4


class Functional(nn.Module):
    """An attention written as one function of its projections' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return F.linear((q @ k.mT).softmax(-1) @ v, self.out.weight, self.out.bias)


class Direct(nn.Module):
    """``forward`` called by name, on a layer inside a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer.forward(x))
        return x


class Both(nn.Module):
    """A layer that is called, and whose weight is read besides: a tied decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encoder(x)) @ self.encoder.weight


class FromAbove(nn.Module):
    """Read two levels up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.part = nn.Module()
        self.inner.part.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.part.layer.weight) + self.inner.part.layer.bias


class Lists(nn.Module):
    """Parameter lists and dicts, which nobody calls: followed from the first pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, WIDTH) / 2) for _ in range(2))
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.randn(WIDTH))})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x * self.named["scale"]


KINDS: list[type[nn.Module]] = [Functional, Direct, Both, FromAbove, Lists]


def network(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, WIDTH), kind(), nn.Linear(WIDTH, 2))


def engine_sum(module: nn.Module, x: Tensor, y: Tensor, bound: float, rows: RowMemory) -> list[Tensor]:
    with GradientEngine(
        module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows
    ) as engine:
        for _ in range(4):
            known = dict(rows.borrowed)
            try:
                engine.expect(len(x))
                engine.backward(squared_loss(module, x, y), len(x))
                return engine.clipped_sum()
            except PrivacyError:
                if rows.borrowed == known:
                    raise
    raise AssertionError("the passes do not come to an end")


@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_loop(kind: type[nn.Module]) -> None:
    module, rows = network(kind), RowMemory()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for size in (1, 4, 3):
        x, y = torch.randn(size, 5, 3), torch.linspace(-1, 1, size)
        gradients = unit_gradients(module, squared_loss, x, y)
        bound = float(torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients]).median())
        truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
        assert relative_error(engine_sum(module, x, y, bound, rows), truth) < 2e-5
    assert bool(rows.borrowed) == (kind is not Lists)
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("kind", [Functional, Direct, Both])
def test_is_refused_once_and_nothing_of_that_pass_stays(kind: type[nn.Module]) -> None:
    module, x, y = network(kind), torch.randn(2, 5, 3), torch.zeros(2)
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        with pytest.raises(PrivacyError, match="run the pass again"):
            engine.backward(squared_loss(module, x, y), 2)
        assert all(p.grad is None for p in module.parameters())
        assert all(float(g.abs().max()) == 0 for g in engine.clipped_sum())
        engine.backward(squared_loss(module, x, y), 2)
        got = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 1.0, "flat", layer_numbers(module))
    assert relative_error(got, truth) < 2e-5


def test_an_error_inside_leaves_every_parameter_in_place() -> None:
    class Fails(Both):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken")

    module, rows = network(Fails), RowMemory()
    rows.borrowed["1.encoder.weight"] = 1
    parameters = dict(module.named_parameters())
    engine = GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows)
    with pytest.raises(RuntimeError, match="broken"):
        module(torch.randn(2, 5, 3))
    engine.close()
    assert all(parameters[name] is p for name, p in module.named_parameters())


def test_a_regulariser_in_the_loss_stays_refused() -> None:
    """Read outside every module's forward pass: there is nobody to follow it in."""
    module, rows = network(Both), RowMemory()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return squared_loss(net, x, y) + net[0].weight.square().sum()  # type: ignore[index, union-attr]

    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1, row_memory=rows) as engine:
        for _ in range(3):
            with pytest.raises(PrivacyError, match=r"0\.weight"):
                engine.backward(loss(module, torch.randn(2, 5, 3), torch.zeros(2)), 2)

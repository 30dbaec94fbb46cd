"""Mixed gradients are, unit by unit, what a plain loop over units computes; and they are clipped after mixing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import (
    Ascent,
    BiasProbe,
    Clipping,
    ClippingName,
    GradientEngine,
    NoiseSource,
    Randomness,
    UnitMap,
)
from lightning_dp.models import ResNet9, StandardisedConv2d
from tests.gradients import networks as net
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss

ASCENT = Ascent(0.5, 0.8)  # a large radius, so that the second gradient is far from the first
Losses = Callable[[], Tensor]


def losses_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One loss for each row, with curvature in every output."""
    out = module(x).flatten(1)
    return ((out - torch.sin(torch.arange(out.shape[1], dtype=out.dtype)) * y[:, None]) ** 2).sum(1)


def mixed_by_hand(module: nn.Module, loss: Callable[[], Tensor], ascent: Ascent) -> list[Tensor]:
    """Differentiate, move the parameters, differentiate, mix; parameters come back as they were."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def gradient() -> list[Tensor]:
        grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]

    first, before = gradient(), [p.detach().clone() for p in parameters]
    length = math.sqrt(sum(float(g.double().square().sum()) for g in first))
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p.add_(g, alpha=ascent.radius / length if length else 0.0)
    second = gradient()
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
    return [(1 - ascent.alpha) * a + ascent.alpha * b for a, b in zip(first, second, strict=True)]


def mix(
    engine: GradientEngine,
    loss: Callable[[], Tensor],
    units: int | UnitMap,
    weights: Tensor | None = None,
    ascent: Ascent = ASCENT,
) -> None:
    state = Randomness.capture(torch.device("cpu"))
    with engine.mixing(units, ascent, weights) as passes:
        first = loss()
        with passes.first():
            first.backward()
        with passes.again(), state.replayed():
            again = loss()
            with passes.second():
                again.backward()


def engine_on(module: nn.Module, clipping: Clipping | float = 1e30, **arguments: Any) -> GradientEngine:
    bound = clipping if isinstance(clipping, Clipping) else Clipping(clipping)
    settings = {"noise_multiplier": 0.0, "expected_batch_size": 1, **arguments}
    return GradientEngine(module, bound, **settings)


def standardised(**arguments: Any) -> net.Builder:
    """A convolution with standardised weights and gains of its own, which the rule has to pull back through both."""

    def build() -> tuple[nn.Module, Tensor]:
        layer = StandardisedConv2d(4, 6, 3, **arguments)
        nn.init.uniform_(layer.gain, 0.5, 2.0)
        return nn.Sequential(layer, nn.Tanh(), StandardisedConv2d(6, 3, 2)), torch.randn(6, 4, 6, 5)

    return build


OWN: dict[str, net.Builder] = {
    "standardised": standardised(),
    "standardised_strided": standardised(stride=2, padding=1, bias=True),
    "standardised_resnet9": lambda: (
        ResNet9(4, width=4, groups=(1, 2, 4, 8), weight_standardised=True),
        torch.randn(4, 3, 16, 16),
    ),
}
EVERY: dict[str, net.Builder] = {**net.LAYERS, **net.NETWORKS, **OWN}


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    module, x = EVERY[name]()
    x = x.double() if x.is_floating_point() else x
    return module.double(), x, torch.linspace(-1, 1, len(x), dtype=torch.float64)


def truth_of(module: nn.Module, x: Tensor, y: Tensor, ascent: Ascent = ASCENT) -> list[list[Tensor]]:
    return [
        mixed_by_hand(module, lambda u=u: squared_loss(module, x[u : u + 1], y[u : u + 1]), ascent)
        for u in range(len(x))
    ]


def norms_of(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.tensor([float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients])


def assert_matches(name: str, clipping: ClippingName = "flat", ascent: Ascent = ASCENT) -> None:
    module, x, y = built(name)
    gradients = truth_of(module, x, y, ascent)
    bound = float(norms_of(gradients).quantile(0.5))  # half of the units are clipped, half are not
    truth = clipped_sum(gradients, bound, clipping, layer_numbers(module))
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    with engine_on(module, Clipping(bound, clipping)) as engine:
        engine.expect(UnitMap(len(x)))
        mix(engine, lambda: squared_loss(module, x, y), len(x), ascent=ascent)
        assert relative_error(engine.clipped_sum(), truth) < 1e-5  # norms are rounded up by 1e-6
    for key, p in module.named_parameters():  # the true parameters are in place, untouched, without a gradient
        assert isinstance(p, nn.Parameter)
        assert torch.equal(p, before[key])
        assert p.grad is None


@pytest.mark.parametrize("name", sorted(EVERY))
def test_matches_a_plain_loop_over_units(name: str) -> None:
    assert_matches(name)


class MaskedPositions(nn.Module):
    """A parameter, a mask over positions and a leaf given a matrix: each has as many rows as a batch of four."""

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor, mix: Tensor) -> Tensor:
            return torch.tanh(mix @ (x * self.scale))

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer, self.leaf = nn.Parameter(torch.randn(5)), nn.Linear(5, 5), self.Leaf()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.where((torch.arange(4) > 1)[:, None], self.token, self.layer(x))
        return self.leaf(torch.tanh(h), torch.tril(torch.ones(4, 4, dtype=x.dtype)))


def test_what_the_batch_shares_is_shared_in_the_second_pass_too() -> None:
    torch.manual_seed(1)
    module, x = MaskedPositions().double(), torch.randn(4, 4, 5, dtype=torch.float64)
    y = torch.linspace(-1, 1, 4, dtype=torch.float64)
    truth = clipped_sum(truth_of(module, x, y), 1e30, "flat", layer_numbers(module))
    with engine_on(module) as engine:
        mix(engine, lambda: squared_loss(module, x[:1], y[:1]), 1)
        one = engine.clipped_sum()
        mix(engine, lambda: squared_loss(module, x, y), 4)
        both = engine.clipped_sum()
    assert relative_error([b - a for a, b in zip(one, both, strict=True)], truth) < 1e-5


class Checkpointed(nn.Module):
    """Blocks whose forward pass is repeated within the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6)), net.Functional()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_activation_checkpointing_repeats_the_second_pass_at_the_units_parameters() -> None:
    torch.manual_seed(0)
    module = Checkpointed().double()
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    truth = clipped_sum(truth_of(module, x, y), 1.0, "flat", layer_numbers(module))
    with engine_on(module, 1.0) as engine:
        mix(engine, lambda: squared_loss(module, x, y), 5)
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


def test_frozen_parameters_are_not_moved() -> None:
    module, x, y = built("cnn")
    for name, p in module.named_parameters():
        p.requires_grad_(name.startswith("4") or name.endswith("bias"))
    truth = clipped_sum(truth_of(module, x, y), 1.0, "flat", layer_numbers(module))
    with engine_on(module, 1.0) as engine:
        mix(engine, lambda: squared_loss(module, x, y), len(x))
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "tied", "tokens", "torch_transformer"])
@pytest.mark.parametrize("clipping", ["per_layer", "automatic"])
def test_any_clipping_comes_after_mixing(name: str, clipping: ClippingName) -> None:
    assert_matches(name, clipping)


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied", "tokens"])
def test_alpha_one_is_the_second_gradient_alone(name: str) -> None:
    assert_matches(name, ascent=Ascent(0.5, 1.0))


@pytest.mark.parametrize("route", ["direct", "gram", "held", "streamed"])
def test_every_route_of_the_first_pass_gives_the_same(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_dp.gradients.contributions import product_sum

    if route != "direct":  # as the cost model chooses
        monkeypatch.setattr(product_sum, "cheapest", lambda *_, may_hold=True, **__: route)
    for name in ("cnn", "tied", "linear_3d", "repeated_conv"):
        assert_matches(name)


# --- the paper's numbers, and what the mixture approximates ----------------------------------------------------------


class Quadratic(nn.Module):
    """The loss ``theta' A theta / 2`` of every row, with A = diag(3, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.theta.square() * self.theta.new_tensor([3.0, 1.0])).sum().div(2)


@pytest.mark.parametrize(("radius", "value"), [(0.1, (3.199692, 2.044376)), (1e-3, (3.001997, 2.000444))])
def test_the_quadratic_has_its_closed_form(radius: float, value: tuple[float, float]) -> None:
    module = Quadratic()
    theta, a = module.theta.detach(), torch.tensor([3.0, 1.0], dtype=torch.float64)
    g = a * theta
    exact = g + 0.8 * radius * a * g / g.norm()
    with engine_on(module) as engine:
        mix(engine, lambda: module(torch.ones(1, 1, dtype=torch.float64)).sum(), 1, ascent=Ascent(radius, 0.8))
        (found,) = engine.clipped_sum()
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, torch.tensor(value, dtype=torch.float64), rtol=0, atol=1e-6)


def test_is_the_gradient_of_the_penalised_loss_to_first_order() -> None:
    """``d/dtheta (l + alpha r ||grad l||)`` by autograd: the deviation falls as r^2, so tenfold smaller r, hundredfold."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    parameters = list(module.parameters())
    deviations = []
    for radius in (1e-2, 1e-3):
        grads = torch.autograd.grad(losses_of(module, x, y).sum(), parameters, create_graph=True)
        penalty = torch.cat([g.flatten() for g in grads]).norm()
        loss = losses_of(module, x, y).sum() + 0.8 * radius * penalty
        truth = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        with engine_on(module) as engine:
            mix(engine, lambda: losses_of(module, x, y).sum(), 1, ascent=Ascent(radius, 0.8))
            found = torch.cat([g.flatten() for g in engine.clipped_sum()])
        deviations.append(float((found - truth).norm()))
    assert deviations[0] < 1e-2 * float(truth.norm())
    assert 60 < deviations[0] / deviations[1] < 160


# --- units ------------------------------------------------------------------------------------------------------------


def test_a_unit_of_several_rows_climbs_once_along_its_mean() -> None:
    module, x, y = built("cnn")
    gradients = [
        mixed_by_hand(module, lambda u=u: losses_of(module, x[u : u + 2], y[u : u + 2]).mean(), ASCENT)
        for u in (0, 2, 4)
    ]
    truth = clipped_sum(gradients, 1.0, "flat", layer_numbers(module))
    with engine_on(module, 1.0) as engine:
        mix(engine, lambda: losses_of(module, x, y).mean(), UnitMap(3, terms=torch.tensor([2, 2, 2])))
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


@pytest.mark.parametrize("name", ["cnn", "tokens", "generic_functional", "embedding", "torch_lstm", "layer_norm"])
def test_units_of_any_number_of_rows(name: str) -> None:
    module, x, y = built(name)
    x, y = torch.cat([x, x.flip(0)])[:6], torch.linspace(-1, 1, 6, dtype=torch.float64)
    rows = torch.tensor([1, 0, 1, 2, 1, 0])
    gradients = [
        mixed_by_hand(module, lambda u=u: losses_of(module, x[rows == u], y[rows == u]).mean(), ASCENT)
        for u in range(3)
    ]
    truth = clipped_sum(gradients, 0.5, "flat", layer_numbers(module))
    terms = torch.bincount(rows)
    with engine_on(module, 0.5) as engine:
        mix(engine, lambda: losses_of(module, x, y).mean(), UnitMap(3, rows, terms))
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


def test_physical_batches_add_up_and_buffers_are_reused_rightly() -> None:
    """Two steps of three physical batches each: what one batch of all units gives, both times."""
    module, x, y = built("cnn")
    with engine_on(module, 0.7) as engine:
        mix(engine, lambda: squared_loss(module, x, y), len(x))
        whole = engine.clipped_sum()
        for _ in range(2):
            engine.discard()
            for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
                mix(engine, lambda p=part: squared_loss(module, x[p], y[p]), len(x[part]))  # type: ignore[misc]
            assert relative_error(engine.clipped_sum(), whole) < 1e-9


def test_sum_and_mean_losses_are_one() -> None:
    module, x, y = built("mlp")
    with engine_on(module, 0.7) as engine:
        mix(engine, lambda: losses_of(module, x, y).mean(), len(x))
        mean = engine.clipped_sum()
    with engine_on(module, 0.7, loss_reduction="sum") as engine:
        mix(engine, lambda: losses_of(module, x, y).sum(), len(x))
        assert relative_error(engine.clipped_sum(), mean) < 1e-12


# --- sensitivity ------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": lambda t: t,
    "huge": lambda t: 1e4 * t,
    "enormous": lambda t: 1e25 * t,
    "zero": torch.zeros_like,
    "nan": lambda t: torch.full_like(t, math.nan),
    "inf": lambda t: torch.full_like(t, math.inf),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", ["mlp", "cnn", "tokens", "generic_functional", "group_norm", "torch_gru", "repeated"])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_one_unit_moves_the_sum_by_at_most_the_bound(name: str, kind: str, clipping: ClippingName) -> None:
    torch.manual_seed(3)
    module, x = {**net.LAYERS, **net.NETWORKS}[name]()
    x, y = x[:3].clone(), torch.tensor([0.3, -1.0, 0.7])
    x[1] = KINDS[kind](x[1])
    bound, others = 0.5, [0, 2]
    sums = []
    for rows in ([0, 1, 2], others):
        with engine_on(module, Clipping(bound, clipping)) as engine:
            engine.backward(squared_loss(module, x[:1], y[:1]), 1)  # tells which rows are whose
            engine.discard()
            mix(engine, lambda r=rows: squared_loss(module, x[r], y[r]), len(rows))  # type: ignore[misc]
            sums.append(torch.cat([g.flatten() for g in engine.clipped_sum()]))
            if len(rows) == 3:
                assert engine.dropped_units == (0 if kind in ("ordinary", "huge", "zero") else engine.dropped_units)
                assert engine.dropped_units == 1 or kind not in ("nan", "inf")
    assert bool(torch.isfinite(sums[0]).all())
    assert float((sums[0] - sums[1]).norm()) <= bound * (1 + 1e-4)


def test_a_unit_of_weight_zero_adds_nothing_and_one_without_gradient_is_not_moved() -> None:
    module, x, y = built("mlp")
    with engine_on(module, 0.5) as engine:
        mix(engine, lambda: squared_loss(module, x, y), len(x), torch.zeros(len(x)))
        assert all(not g.any() for g in engine.clipped_sum())
        mix(engine, lambda: squared_loss(module, x, y) * 0.0, len(x))
        assert all(not g.any() for g in engine.clipped_sum())
        assert engine.dropped_units == 0


def test_a_unit_whose_second_gradient_alone_overflows_is_dropped() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    x = torch.tensor([[1.0], [1.0]])
    scale = torch.tensor([1.0, 1e5])

    def loss() -> Tensor:
        return (torch.exp(module(x).squeeze(1) * scale) / scale).mean()

    with engine_on(module, 1e30) as engine:
        mix(engine, loss, 2, ascent=Ascent(0.1, 0.5))
        assert engine.dropped_units == 1
        assert float(engine.clipped_sum()[0]) == pytest.approx(0.5 + 0.5 * math.exp(0.1), rel=1e-6)


def test_a_unit_whose_first_gradient_alone_is_not_finite_is_dropped() -> None:
    module, x, y = built("mlp")
    first = x.clone()
    first[1] = math.nan
    sums = []
    for rows in ([0, 1, 2], [0, 2]):
        with engine_on(module, 0.5) as engine:
            with engine.mixing(len(rows), ASCENT) as passes:
                loss = squared_loss(module, first[rows], y[rows])
                with passes.first():
                    loss.backward()
                with passes.again():
                    loss = squared_loss(module, x[rows], y[rows])
                    with passes.second():
                        loss.backward()
            sums.append(engine.clipped_sum())
            assert engine.dropped_units == len(rows) - 2
    assert relative_error(*sums) < 1e-9


def test_the_noise_is_that_of_the_bound() -> None:
    """20 000 coordinates of std sigma C / B, within 5 standard errors (6e-7)."""
    torch.manual_seed(0)
    module = nn.Linear(100, 200, bias=False)
    x = torch.randn(8, 100)
    with engine_on(module, 0.5, noise_multiplier=3.0, expected_batch_size=16, noise=NoiseSource(1)) as engine:
        mix(engine, lambda: module(x).square().sum(1).mean(), 8)
        clean = engine.clipped_sum()[0] / 16
        engine.write_gradients()
        assert module.weight.grad is not None
        noise = (module.weight.grad - clean).flatten().double() * 16 / (3.0 * 0.5)
    assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * noise.numel())
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())


# --- randomness -------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.attention, self.need_weights = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True), need_weights
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.first(x)))
        x = self.norm(x + self.attention(x, x, x, need_weights=self.need_weights)[0])
        return self.head(self.drop(x).mean(1))


@pytest.mark.parametrize("need_weights", [False, True])
def test_both_passes_drop_the_same(need_weights: bool) -> None:
    """The truth: unit u's own loss in the whole batch, with the whole batch's masks, at u's own parameters."""
    torch.manual_seed(0)
    module = Dropping(need_weights).double()
    x, y = torch.randn(4, 3, 8, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)
    state = Randomness.capture(torch.device("cpu"))

    def of(u: int) -> Tensor:
        with state.replayed():
            return losses_of(module, x, y)[u]

    gradients = [mixed_by_hand(module, lambda u=u: of(u), ASCENT) for u in range(4)]
    truth = clipped_sum(gradients, float(norms_of(gradients).median()), "flat", layer_numbers(module))
    with engine_on(module, float(norms_of(gradients).median())) as engine:
        mix(engine, lambda: losses_of(module, x, y).mean(), 4)
        assert relative_error(engine.clipped_sum(), truth) < 1e-5


def test_every_generator_is_replayed_and_goes_on() -> None:
    state = Randomness.capture(torch.device("cpu"))

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    first, after = draw(), Randomness.capture(torch.device("cpu"))
    with state.replayed():
        assert draw() == first
    following = draw()
    with after.replayed():
        assert draw() == following


def test_bfloat16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    module, x = net.NETWORKS["cnn"]()
    y, sums = torch.linspace(-1, 1, len(x)), []
    for low in (False, True):
        with engine_on(module, 0.5) as engine, torch.autocast("cpu", torch.bfloat16, enabled=low):
            mix(engine, lambda: squared_loss(module, x, y), len(x))
            sums.append(torch.cat([g.flatten() for g in engine.clipped_sum()]))
    assert float((sums[0] - sums[1]).norm()) < 0.1 * float(sums[0].norm())


# --- what is refused --------------------------------------------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        return self.body(packed)[1][0]


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[0][:, -1]


class ExtraKey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.MultiheadAttention(3, 1, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, x, x)[0]


@pytest.mark.parametrize(
    ("build", "word"), [(Packed, "packed sequence"), (Stacked, "dropout=0"), (ExtraKey, "add_bias_kv")]
)
def test_what_cannot_have_parameters_of_a_units_own_is_named(build: Callable[[], nn.Module], word: str) -> None:
    module, x = build(), torch.randn(4, 5, 3)
    with engine_on(module) as engine, pytest.raises(PrivacyError, match=word):
        mix(engine, lambda: module(x).square().flatten(1).sum(1).mean(), 4)
    module(x).square().sum().backward()  # and the network is an ordinary one again


def test_kinds_of_rows_are_refused_where_a_layer_must_run_again() -> None:
    module = net.Functional()
    x = torch.randn(4, 6)
    units = UnitMap(2, torch.tensor([0, 0, 1, 1]), kinds={"edges": torch.tensor([0, 0, 1])})
    with engine_on(module) as engine:
        engine.backward(module(x[:2]).square().sum(), UnitMap(1, torch.zeros(2, dtype=torch.int64)))
        with pytest.raises(PrivacyError, match="several kinds of rows"):
            mix(engine, lambda: module(x).square().sum(1).mean(), units)


class Remembering(nn.Module):
    """Carries what its second pass computed into the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = net.Functional(), None

    def forward(self, x: Tensor) -> Tensor:
        before, self.state = self.state, self.layer(x)
        return self.state if before is None else self.state + before


def test_a_state_carried_from_the_second_pass_is_refused() -> None:
    module, x = Remembering(), torch.randn(3, 6)
    with engine_on(module) as engine:

        def loss() -> Tensor:
            return module(x).square().sum(1).mean()

        with engine.mixing(3, ASCENT) as passes:
            first = loss()
            with passes.first():
                first.backward()
            module.state = None
            with passes.again():
                again = module(x).square().sum(1).mean()
                with passes.second():
                    again.backward(retain_graph=True)
        with pytest.raises(PrivacyError, match="earlier pass"):
            engine.backward(loss(), 3)


@pytest.mark.parametrize("arguments", [{"radius": -1}, {"radius": math.inf}, {"alpha": 1.5}, {"alpha": math.nan}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(PrivacyConfigError, match=r"radius=0\.05 and alpha=0\.8"):
        Ascent(**arguments)


def leaves_out(engine: GradientEngine, module: nn.Module, *, first: bool, forward: bool) -> None:
    x = torch.randn(4, 3)
    with engine.mixing(4, ASCENT) as passes:
        loss = module(x).square().mean()
        if first:
            with passes.first():
                loss.backward()
        if forward:
            with passes.again():
                module(x)


@pytest.mark.parametrize(
    ("first", "forward", "word"),
    [(False, False, "first pass"), (True, False, "second pass"), (True, True, "without a backward pass")],
)
def test_passes_left_out_are_errors(first: bool, forward: bool, word: str) -> None:
    module = nn.Linear(3, 2)
    with engine_on(module) as engine:
        with pytest.raises(PrivacyError, match=word):
            leaves_out(engine, module, first=first, forward=forward)
        assert all(not g.any() for g in engine.clipped_sum())


# --- the measured bias ------------------------------------------------------------------------------------------------


def test_the_bias_is_measured_and_keeps_its_bound() -> None:
    module, x, y = built("cnn")
    plain = [
        mixed_by_hand(module, lambda u=u: losses_of(module, x[u : u + 1], y[u : u + 1]).mean(), Ascent(0.5, 0.0))
        for u in range(6)
    ]  # noqa: E501
    bound = float(norms_of(plain).median())
    total = torch.cat([sum(parts).flatten() for parts in zip(*plain, strict=True)])  # type: ignore[attr-defined]
    with engine_on(module, bound, expected_batch_size=4) as engine:
        for mixes in (False, True):
            engine.probe = BiasProbe()
            for part in (slice(0, 2), slice(2, 6)):
                if mixes:
                    mix(engine, lambda p=part: squared_loss(module, x[p], y[p]), len(x[part]))  # type: ignore[misc]
                else:
                    engine.backward(squared_loss(module, x[part], y[part]), len(x[part]))
            clipped = dict(zip(engine.trainable(), engine.clipped_sum(), strict=True))
            bias = engine.probe.measure(clipped, 4)
            flat = torch.cat([g.flatten() for g in clipped.values()])
            assert bias.norm == pytest.approx(float((flat - total).norm()) / 4, rel=1e-6)
            assert bias.bound == pytest.approx(float((norms_of(plain) - bound).clamp(min=0).sum()) / 4, rel=1e-5)
            assert bias.cosine == pytest.approx(float(flat @ total / flat.norm() / total.norm()), rel=1e-6)
            assert mixes or bias.norm <= bias.bound
            engine.discard()

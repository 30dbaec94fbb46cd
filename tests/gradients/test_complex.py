"""A complex network is clipped and noised as the real network of twice the coordinates that it is.

Two independent truths: a plain loop of PyTorch's own gradients over single units, and the same network written with real
numbers only, its real and imaginary parts as separate tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import (
    AdaptiveClipping,
    AdaptiveThreshold,
    Ascent,
    BiasProbe,
    Clipping,
    ClippingName,
    GradientEngine,
    LayerCall,
    NoiseSource,
    UnitMap,
    register_rule,
)
from lightning_dp.gradients.contributions import OuterProduct, PerUnit, product_sum
from lightning_dp.gradients.reals import as_real, real_rows
from lightning_dp.gradients.rules import registry
from tests.gradients.complex_networks import C64, COMPLEX, Bend, Magnitude, Mixed, Parts
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients
from tests.gradients.test_noise import ALARM, assert_normal, assert_uncorrelated

CLIPPINGS: tuple[ClippingName, ...] = ("flat", "per_layer", "automatic")


def engine_of(module: nn.Module, clipping: Clipping, **options: object) -> GradientEngine:
    settings: dict[str, object] = {"noise_multiplier": 0.0, "expected_batch_size": 1, **options}
    return GradientEngine(module, clipping, **settings)  # type: ignore[arg-type]


def engine_sum(module: nn.Module, x: Tensor, y: Tensor, clipping: Clipping, split: int = 100) -> list[Tensor]:
    with engine_of(module, clipping) as engine:
        for start in range(0, len(x), split):
            part = slice(start, start + split)
            engine.backward(squared_loss(module, x[part], y[part]), len(x[part]))
        return engine.clipped_sum()


def norms_of(gradients: list[list[Tensor]]) -> Tensor:
    return torch.tensor([math.sqrt(sum(float(as_real(g).square().sum()) for g in unit)) for unit in gradients])


def targets(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, len(x))


# --- a plain loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", sorted(COMPLEX))
def test_clipped_sum_is_that_of_a_plain_loop(name: str, clipping: ClippingName) -> None:
    torch.manual_seed(1)
    module, x = COMPLEX[name]()
    gradients = unit_gradients(module, squared_loss, x, targets(x))
    bound = float(norms_of(gradients).median())  # half of the units are clipped, half are not
    truth = clipped_sum(gradients, bound, clipping, layer_numbers(module))
    before = [p.detach().clone() for p in module.parameters()]
    found = engine_sum(module, x, targets(x), Clipping(bound, clipping))
    assert [g.dtype for g in found] == [p.dtype for p in before]
    assert relative_error(found, truth) < 2e-5
    for p, value in zip(module.parameters(), before, strict=True):
        assert isinstance(p, nn.Parameter)
        assert torch.equal(p, value)


@pytest.mark.parametrize("name", ["c_cnn", "c_linear_long", "c_conv2d_groups", "c_generic"])
@pytest.mark.parametrize("split", [1, 2])
def test_physical_batches_add_up(name: str, split: int) -> None:
    torch.manual_seed(2)
    module, x = COMPLEX[name]()
    whole = engine_sum(module, x, targets(x), Clipping(0.3))
    assert relative_error(engine_sum(module, x, targets(x), Clipping(0.3), split), whole) < 2e-5


@pytest.mark.parametrize("limit", [1, 3000, 1 << 30])
@pytest.mark.parametrize("name", ["c_cnn", "c_linear_wide", "c_conv1d_strided", "c_conv_transpose2d"])
def test_a_memory_limit_changes_routes_and_not_results(name: str, limit: int) -> None:
    torch.manual_seed(3)
    module, x = COMPLEX[name]()
    whole = engine_sum(module, x, targets(x), Clipping(0.1))
    with engine_of(module, Clipping(0.1), memory_limit=limit) as engine:
        for _ in range(2):
            engine.discard()
            engine.backward(squared_loss(module, x, targets(x)), len(x))
            assert relative_error(engine.clipped_sum(), whole) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_routes_agree(length: int, groups: int) -> None:
    torch.manual_seed(4)
    a, b = torch.randn(5, groups, length, 6, dtype=C64), torch.randn(5, groups, length, 4, dtype=C64)
    wide = torch.complex128
    gradients = torch.einsum("ugtp,ugtd->ugpd", b.to(wide), a.to(wide))
    truth, weights = gradients.abs().square().sum((1, 2, 3)), torch.linspace(-1, 2, 5)
    total = torch.einsum("u,ugpd->gpd", weights.to(wide), gradients).reshape(groups * 4, 6)
    for route in ("gram", "held", "streamed"):
        product = OuterProduct(a, b, torch.Size((groups * 4, 6))).real()
        assert isinstance(product, product_sum.ProductSum)
        product.route = route  # type: ignore[assignment]
        torch.testing.assert_close(product.repaired(product.squared_norms()).double(), truth, rtol=1e-5, atol=0)
        found = torch.view_as_complex(product.weighted_sum(weights).double())
        torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [(1, 2), (1, -1)])
def test_real_factors_have_the_parts_of_the_complex_product(axes: tuple[int, int]) -> None:
    torch.manual_seed(5)
    a, b = torch.randn(3, 5, 4, dtype=torch.complex128), torch.randn(3, 5, 2, dtype=torch.complex128)
    truth = torch.einsum("utp,utd->upd", b, a)
    left, right = real_rows(a, b, *axes)
    assert not left.is_complex()
    assert not right.is_complex()
    found = torch.einsum("utp,utd->upd", right, left).unflatten(-1, (4, 2))
    torch.testing.assert_close(torch.view_as_complex(found), truth)


@pytest.mark.parametrize(
    "units",
    [
        UnitMap(3),
        UnitMap(2, torch.tensor([0, 1, 1, 0, 1, 1])),
        UnitMap(2, torch.tensor([0, 0, 1, 1, 1, 1]), kinds={"other": torch.tensor([0, 1])}),
    ],
    ids=["fold", "ragged", "kinds"],
)
@pytest.mark.parametrize("layer", ["linear", "generic"])
def test_units_of_several_rows(units: UnitMap, layer: str) -> None:
    torch.manual_seed(6)
    inner = nn.Linear(4, 4, dtype=C64) if layer == "linear" else Mixed(4)
    module, x = nn.Sequential(inner, Bend(), Parts()), torch.randn(6, 4, dtype=C64)
    losses = (module(x) - 0.3).square().sum(1)
    owner = units.owners(6)
    per_unit = [torch.autograd.grad(losses[owner == u].sum(), [*module.parameters()][:2], retain_graph=True) for u in
                range(units.num_units)]  # fmt: skip
    bound = float(norms_of([list(g) for g in per_unit]).min())
    truth = [g if isinstance(g, Tensor) else torch.tensor(g) for g in clipped_sum(per_unit, bound, "flat", [0, 0])]
    with engine_of(module, Clipping(bound)) as engine:
        losses = (module(x) - 0.3).square().sum(1)
        engine.backward(losses.sum() / units.num_units, units)
        assert relative_error(engine.clipped_sum()[:2], truth) < 2e-5


# --- the real twin ----------------------------------------------------------------------------------------------------


class TwinLinear(nn.Module):
    """A complex linear layer in real numbers: parts ``(..., 2 d)`` side by side as in :class:`Parts`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(t.clone()) for t in (layer.weight.detach().real, layer.weight.detach().imag))
        self.bias = nn.Parameter(torch.view_as_real(layer.bias.detach()).clone())

    def forward(self, x: Tensor) -> Tensor:
        re, im = x.unflatten(-1, (-1, 2)).unbind(-1)
        a, b = self.a, self.b
        return torch.stack(
            [F.linear(re, a, self.bias[:, 0]) - F.linear(im, b), F.linear(re, b, self.bias[:, 1]) + F.linear(im, a)], -1
        ).flatten(-2)


class TwinConv(nn.Module):
    """A complex convolution in real numbers, on ``(N, 2 C, H, W)``: all real parts, then all imaginary parts."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(t.clone()) for t in (layer.weight.detach().real, layer.weight.detach().imag))
        assert layer.bias is not None
        self.bias = nn.Parameter(torch.view_as_real(layer.bias.detach()).clone())
        self.options = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        re, im = x.chunk(2, 1)

        def conv(t: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(t, w, None, *self.options)

        real = conv(re, self.a) - conv(im, self.b) + self.bias[:, 0, None, None]
        return torch.cat([real, conv(re, self.b) + conv(im, self.a) + self.bias[:, 1, None, None]], 1)


class TwinBend(nn.Module):
    def __init__(self, axis: int, interleaved: bool) -> None:
        super().__init__()
        self.axis, self.interleaved = axis, interleaved

    def forward(self, x: Tensor) -> Tensor:
        re, im = x.unflatten(-1, (-1, 2)).unbind(-1) if self.interleaved else x.chunk(2, self.axis)
        parts = torch.tanh(re + 0.3 * im), torch.sin(im - 0.5 * re)
        return torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, self.axis)


class ToPlanes(nn.Module):
    """The parts of ``(N, C, H, W)`` as ``(N, 2 C, H, W)``."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.real, z.imag], 1)


Pair = tuple[nn.Module, nn.Module, Tensor, Callable[[Tensor], Tensor]]


def linear_pair() -> Pair:
    one, two = nn.Linear(5, 4, dtype=C64), nn.Linear(4, 3, dtype=C64)
    module = nn.Sequential(one, Bend(), two, Parts())
    twin = nn.Sequential(TwinLinear(one), TwinBend(-1, True), TwinLinear(two))
    return module, twin, torch.randn(7, 6, 5, dtype=C64), lambda z: torch.view_as_real(z).flatten(-2)


def conv_pair() -> Pair:
    one, two = nn.Conv2d(2, 4, 3, padding=1, stride=2, dtype=C64), nn.Conv2d(4, 2, 2, groups=2, dtype=C64)
    module = nn.Sequential(one, Bend(), two, ToPlanes())
    twin = nn.Sequential(TwinConv(one), TwinBend(1, False), TwinConv(two))
    return module, twin, torch.randn(6, 2, 7, 6, dtype=C64), ToPlanes()


def of_twin(gradients: list[Tensor]) -> list[Tensor]:
    """Gradients of ``a``, ``b``, ``bias`` of each layer as those of its complex weight and bias."""
    found = []
    for a, b, bias in zip(gradients[::3], gradients[1::3], gradients[2::3], strict=True):
        found += [torch.complex(a, b), torch.view_as_complex(bias.contiguous())]
    return found


@pytest.mark.parametrize("make", [linear_pair, conv_pair])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_a_network_is_its_real_twin(make: Callable[[], Pair], clipping: ClippingName) -> None:
    """Outputs, gradients, units' norms, clipped sums, and the next parameters."""
    torch.manual_seed(7)
    module, twin, z, real = make()
    x, y = real(z), targets(z)
    torch.testing.assert_close(module(z), twin(x))
    plain, plain_twin = unit_gradients(module, squared_loss, z, y), unit_gradients(twin, squared_loss, x, y)
    for one, other in zip(plain, plain_twin, strict=True):
        assert relative_error(one, of_twin(other)) < 2e-5
    norms = norms_of(plain)
    torch.testing.assert_close(norms, norms_of(plain_twin))
    bound = Clipping(float(norms.median()), clipping)
    found = engine_sum(module, z, y, bound)
    assert relative_error(found, of_twin(clipped_sum(plain_twin, bound.max_grad_norm, clipping, [0] * 6))) < 2e-5
    assert relative_error(found, of_twin(engine_sum(twin, x, y, bound))) < 2e-5


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_optimizers_take_the_step_of_the_twin(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(8)
    module, twin, z, real = linear_pair()
    for net, inputs in ((module, z), (twin, real(z))):
        optimizer = kind(net.parameters(), lr=0.05)  # type: ignore[call-arg]
        for _ in range(3):
            with engine_of(net, Clipping(0.5)) as engine:
                engine.backward(squared_loss(net, inputs, targets(z)), len(z))
                engine.write_gradients()
            optimizer.step()
    ours = [p.detach() for p in module.parameters()]
    assert relative_error(ours, of_twin([p.detach() for p in twin.parameters()])) < 2e-3  # Adam divides by small roots


# --- noise ------------------------------------------------------------------------------------------------------------


def noisy(module: nn.Module, **options: object) -> list[Tensor]:
    with engine_of(
        module, Clipping(2.0), noise_multiplier=1.5, expected_batch_size=8, noise=NoiseSource(seed=3), **options
    ) as engine:
        engine.write_gradients()
    return [p.grad.clone() * 8 for p in module.parameters() if p.grad is not None]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 100, dtype=C64), Magnitude(), nn.Linear(100, 40))


def test_each_real_part_gets_the_full_noise() -> None:
    """Standard deviation sigma C on the real and on the imaginary part, as on a real parameter; all independent."""
    weight, bias, real_weight, _ = noisy(wide())
    assert (weight.dtype, real_weight.dtype) == (C64, torch.float32)
    for part in (weight.real, weight.imag, bias.real, bias.imag, real_weight):
        assert_normal(part, 3.0)
    assert_uncorrelated(weight.real, weight.imag)
    assert_uncorrelated(weight.real, real_weight.t())


def test_noise_on_complex_parameters_is_circular() -> None:
    """E z^2 = 0 and E |z|^2 = 2 (sigma C)^2; each statistic raises a false alarm once in a million runs."""
    z = noisy(wide())[0].flatten().to(torch.complex128) / 3.0
    n, squares = len(z), z.square()
    limit = float(stats.norm.isf(ALARM / 2))
    # Re z^2 = a^2 - b^2 and Im z^2 = 2ab both have mean 0 and variance 4.
    assert abs(float(squares.real.mean())) * math.sqrt(n) / 2 < limit
    assert abs(float(squares.imag.mean())) * math.sqrt(n) / 2 < limit
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], 2 * n)
    assert low < float(z.abs().square().sum()) < high
    turned = z * complex(math.cos(1.0), math.sin(1.0))  # circular: whatever the phase, the parts are as before
    assert_normal(turned.real, 1.0)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_every_real_coordinate_gets_exactly_one_draw_over_all_ranks(world_size: int) -> None:
    """Ranks share out real coordinates: a boundary between them may lie inside a complex number."""
    sent: list[Tensor] = []
    for rank in range(world_size):
        module = nn.Sequential(nn.Linear(5, 3, dtype=C64), Magnitude(), nn.Linear(3, 2))

        def keep(flat: Tensor) -> Tensor:
            assert not flat.is_complex()  # what crosses ranks is real, and needs no complex reduction
            sent.append(flat.clone())
            return flat

        with engine_of(module, Clipping(1.0), noise_multiplier=1.0, noise=NoiseSource(seed=4, rank=rank)) as engine:
            engine.write_gradients(keep, (rank, world_size))
    assert len(sent) == world_size  # one buffer: complex64 and float32 parameters have the same precision
    assert sent[0].numel() == 2 * (5 * 3 + 3) + 3 * 2 + 2
    drawn = torch.stack([part != 0 for part in sent]).sum(0)
    assert torch.equal(drawn, torch.ones_like(drawn))


def test_parameters_of_both_precisions_keep_theirs() -> None:
    module = nn.Sequential(nn.Linear(30, 40, dtype=torch.complex128), Magnitude(), nn.Linear(40, 30))
    weight, _, real_weight, _ = noisy(module)
    assert (weight.dtype, real_weight.dtype) == (torch.complex128, torch.float32)
    assert_normal(torch.view_as_real(weight), 3.0)


# --- what must not pass -----------------------------------------------------------------------------------------------


def test_a_gradient_round_the_taps_is_found() -> None:
    module = nn.Sequential(nn.Linear(4, 3, dtype=C64), Parts())
    with engine_of(module, Clipping(1.0)) as engine:
        loss = module(torch.randn(5, 4, dtype=C64)).square().sum(1).mean() + module[0].weight.abs().sum()
        with pytest.raises(PrivacyError, match=r"0\.weight"):
            engine.backward(loss, 5)


class Doubled(nn.Module):
    """``y = w z``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        return self.weight * z


def test_rules_for_real_numbers_are_not_used_for_complex_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule without a conjugate gives another gradient, and a norm that bounds nothing."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    used = []

    @register_rule(Doubled)
    def real_rule(call: LayerCall) -> dict[str, PerUnit]:
        used.append(call)
        return {"weight": PerUnit(call.units.by_unit(call.grad * call.x, call.name).sum(1))}

    torch.manual_seed(9)
    for dtype in (torch.float32, C64):
        module, x = (
            nn.Sequential(Doubled(dtype), Parts() if dtype == C64 else nn.Tanh()),
            torch.randn(5, 4, dtype=dtype),
        )
        gradients = unit_gradients(module, squared_loss, x, targets(x))
        truth = clipped_sum(gradients, 0.5, "flat", [0])
        assert relative_error(engine_sum(module, x, targets(x), Clipping(0.5)), truth) < 2e-5
    assert len(used) == 1


@pytest.mark.parametrize("dtype", [torch.float32, C64])
def test_a_rule_that_mixes_up_real_and_complex_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complex gradient for a real parameter, or a real one for a complex parameter."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @register_rule(Doubled, complex_too=True)
    def rule(call: LayerCall) -> dict[str, PerUnit]:
        found = call.units.by_unit(call.grad * call.x.conj_physical(), call.name).sum(1)
        return {"weight": PerUnit(found if dtype == torch.float32 else found.real)}

    module, x = nn.Sequential(Doubled(dtype), Parts()), torch.randn(5, 4, dtype=C64)
    with pytest.raises(PrivacyError, match="real coordinates"):
        engine_sum(module, x, targets(x), Clipping(0.5))


def test_bias_aware_ascent_is_refused_by_name() -> None:
    module, x = COMPLEX["c_linear"]()

    def ascend(engine: GradientEngine) -> None:
        with engine.mixing(len(x), Ascent(radius=0.1, alpha=0.5)) as passes:
            with passes.first():
                squared_loss(module, x, targets(x)).backward()
            with passes.again():
                squared_loss(module, x, targets(x))

    with engine_of(module, Clipping(1.0)) as engine, pytest.raises(PrivacyError, match=r"0 \(Linear\).*complex"):
        ascend(engine)


def test_the_bias_probe_sees_both_parts() -> None:
    """What clipping does to the sum is measured over all real coordinates."""
    torch.manual_seed(10)
    module, x = COMPLEX["c_cnn"]()
    gradients = unit_gradients(module, squared_loss, x, targets(x))
    bound = float(norms_of(gradients).median())
    clipped = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    whole = [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]
    truth = norms_of([[a - b for a, b in zip(clipped, whole, strict=True)]])
    with engine_of(module, Clipping(bound)) as engine:
        engine.probe = BiasProbe()
        engine.backward(squared_loss(module, x, targets(x)), len(x))
        sums = dict(zip(engine.trainable(), engine.clipped_sum(), strict=True))
        assert engine.probe.measure(sums, 1).norm == pytest.approx(float(truth), rel=1e-4)


def test_an_adaptive_threshold_counts_norms_over_both_parts() -> None:
    """Without noise the threshold moves by the share of units whose norm over all real coordinates lies below it."""
    torch.manual_seed(11)
    module, x = COMPLEX["c_cnn"]()
    norms = norms_of(unit_gradients(module, squared_loss, x, targets(x)))
    first = float(norms.sort().values[2:4].mean())  # three of six lie below; real parts alone would put more there
    threshold = AdaptiveThreshold(AdaptiveClipping(quantile=0.9, learning_rate=1.0, count_noise=0.0), first)
    with GradientEngine(module, threshold, noise_multiplier=0.0, expected_batch_size=len(x)) as engine:
        engine.backward(squared_loss(module, x, targets(x)), len(x))
        engine.write_gradients()
        assert engine.clipping.max_grad_norm == pytest.approx(first * math.exp(0.9 - 3 / 6), rel=1e-5)

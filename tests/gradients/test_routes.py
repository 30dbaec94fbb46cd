"""Every layer and route gives the clipped sum that a plain loop over single units gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, ClippingName, GradientEngine, contributions
from lightning_dp.gradients.contributions import product_sum
from tests.gradients import networks as net
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, squared_loss, unit_gradients

CLIPPINGS: tuple[ClippingName, ...] = ("flat", "per_layer", "automatic")


def engine_sum(module: nn.Module, x: Tensor, y: Tensor, clipping: Clipping, units: int | None = None) -> list[Tensor]:
    with GradientEngine(module, clipping, noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, x, y), len(x) if units is None else units)
        return engine.clipped_sum()


def assert_matches(module: nn.Module, x: Tensor, clipping: ClippingName = "flat", quantile: float = 0.5) -> None:
    y = torch.linspace(-1, 1, len(x), dtype=x.dtype if x.is_floating_point() else torch.float32)
    gradients = unit_gradients(module, squared_loss, x, y)
    norms = torch.tensor([torch.cat([g.flatten() for g in unit]).norm() for unit in gradients])
    bound = float(norms.quantile(quantile))  # half of the units are clipped, half are not
    truth = clipped_sum(gradients, bound, clipping, layer_numbers(module))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert relative_error(engine_sum(module, x, y, Clipping(bound, clipping)), truth) < 2e-5
    for name, p in module.named_parameters():  # the true parameters are back in place, untouched, without a gradient
        assert isinstance(p, nn.Parameter)
        assert torch.equal(p, before[name])
        assert p.grad is None


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", sorted(net.LAYERS))
def test_layer_matches_plain_loop(name: str, clipping: ClippingName) -> None:
    torch.manual_seed(1)
    module, x = net.LAYERS[name]()
    assert_matches(module, x, clipping)


@pytest.mark.parametrize("name", sorted(net.NETWORKS))
def test_network_matches_plain_loop(name: str) -> None:
    torch.manual_seed(2)
    module, x = net.NETWORKS[name]()
    assert_matches(module, x)


@pytest.mark.parametrize("length", [1, 2, 7, 40, 200])
def test_the_routes_agree(length: int) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(5, 2, length, 6), torch.randn(5, 2, length, 4)
    gradients = torch.einsum("ugtp,ugtd->ugpd", b.double(), a.double())
    truth, weights = gradients.square().sum((1, 2, 3)), torch.linspace(-1, 2, 5)
    total = torch.einsum("u,ugpd->gpd", weights.double(), gradients).reshape(8, 6)
    for route in ("direct",) if length == 1 else ("gram", "held", "streamed"):
        product = contributions.OuterProduct(a, b, torch.Size((8, 6)))
        product.route = route  # type: ignore[assignment]
        torch.testing.assert_close(product.repaired(product.squared_norms()).double(), truth, rtol=1e-5, atol=0)
        torch.testing.assert_close(product.weighted_sum(weights).double(), total, rtol=1e-4, atol=1e-5)
        assert (product.held is not None) == (route == "held")


def test_cancelling_terms_do_not_hide_a_norm() -> None:
    """Two positions that nearly cancel: a Gram matrix alone would see rounding noise, or a negative square."""
    a = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).view(1, 1, 2, 2).repeat(1, 1, 1, 32)
    b = torch.tensor([[1e4], [-1e4 * (1 + 1e-5)]]).view(1, 1, 2, 1).repeat(1, 1, 1, 64)
    product = contributions.OuterProduct(a, b, torch.Size((64, 64)))
    truth = float(torch.einsum("ugtp,ugtd->ugpd", b.double(), a.double()).norm())
    product.route = "gram"
    assert float(product.repaired(product.squared_norms()).sqrt()) >= truth * 0.999
    assert product.doubtful is not None
    assert bool(product.doubtful[0])


@pytest.mark.parametrize("name", ["cnn", "torch_transformer"])
@pytest.mark.parametrize("limit", [1, 3000, 1 << 30])
def test_a_memory_limit_changes_routes_and_not_results(name: str, limit: int) -> None:
    torch.manual_seed(4)
    module, x = net.NETWORKS[name]()
    y = torch.linspace(-1, 1, len(x))
    whole = engine_sum(module, x, y, Clipping(0.1))
    limited = GradientEngine(module, Clipping(0.1), noise_multiplier=0, expected_batch_size=1, memory_limit=limit)
    with limited:
        for _ in range(2):  # the second pass meets the buffers of the first
            limited.discard()
            limited.backward(squared_loss(module, x, y), len(x))
            assert relative_error(limited.clipped_sum(), whole) < 1e-5


@pytest.mark.parametrize("route", ["gram", "held", "streamed"])
def test_no_route_counts_a_unit_as_smaller_than_its_terms_resolve(route: str) -> None:
    """The first unit's two positions cancel, the second's do not: only the first is lifted, and by every route."""
    a = torch.ones(2, 1, 2, 8)
    b = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).view(2, 1, 2, 1).repeat(1, 1, 1, 4)
    product = contributions.OuterProduct(a, b, torch.Size((4, 8)))
    product.route = route  # type: ignore[assignment]
    norms = product.repaired(product.squared_norms())
    terms = (a.norm(dim=-1) * b.norm(dim=-1)).sum((1, 2)).square()
    torch.testing.assert_close(norms[0], terms[0] * product_sum.RESOLUTION**2 / 2)
    torch.testing.assert_close(norms[1], terms[1])


def test_held_gradients_of_two_layers_do_not_meet() -> None:
    """Two layers of one shape whose gradients are held: one buffer for both would mix them up."""
    torch.manual_seed(11)
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(5, 200, 4)
    y = torch.linspace(-1, 1, 5)
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 0.1, "flat", layer_numbers(module))
    with GradientEngine(
        module, Clipping(0.1), noise_multiplier=0, expected_batch_size=1, memory_limit=1 << 30
    ) as engine:
        for _ in range(3):
            engine.discard()
            engine.backward(squared_loss(module, x, y), 5)
            assert relative_error(engine.clipped_sum(), truth) < 2e-5


def test_cancelling_terms_are_repaired_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every unit is doubtful, every norm is the repaired one."""
    torch.manual_seed(12)
    module, x, y = nn.Linear(64, 64, bias=False), torch.randn(4, 2, 64), torch.zeros(4)
    before = engine_sum(module, x, y, Clipping(1e-3))[0]
    monkeypatch.setattr(product_sum, "CANCELLATION", 1e9)
    torch.testing.assert_close(engine_sum(module, x, y, Clipping(1e-3))[0], before, rtol=1e-4, atol=1e-8)
    monkeypatch.setattr(contributions.OuterProduct, "repaired", lambda self, norms: 4 * norms)
    torch.testing.assert_close(engine_sum(module, x, y, Clipping(1e-3))[0], before / 2, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_a_memory_limit_is_a_number_of_bytes(limit: object) -> None:
    with pytest.raises(PrivacyConfigError, match="memory_limit"):
        GradientEngine(
            nn.Linear(2, 2),
            Clipping(1.0),
            noise_multiplier=0,
            expected_batch_size=1,
            memory_limit=limit,  # type: ignore[arg-type]
        )


def test_frozen_parameters_take_no_part() -> None:
    torch.manual_seed(5)
    module, x = net.NETWORKS["cnn"]()
    module[0].weight.requires_grad_(False)
    module[-1].bias.requires_grad_(False)
    assert_matches(module, x)


def test_unfreezing_later_is_seen() -> None:
    torch.manual_seed(6)
    module, x = net.NETWORKS["mlp"]()
    y = torch.linspace(-1, 1, len(x))
    module[1].requires_grad_(False)
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, x, y), len(x))
        engine.discard()
        module[1].requires_grad_(True)
        engine.backward(squared_loss(module, x, y), len(x))
        after = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 1.0, "flat", layer_numbers(module))
    assert relative_error(after, truth) < 2e-5


def test_unused_layer_contributes_zero_and_never_an_old_value() -> None:
    """Trap T5: a branch that is not used keeps no norm and no gradient of the step before."""
    torch.manual_seed(7)
    module = net.Branches()
    x, y = torch.randn(4, 6), torch.linspace(-1, 1, 4)
    with GradientEngine(module, Clipping(1e6), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, x * 100, y), 4)
        engine.discard()
        module.use_second = False
        engine.backward(squared_loss(module, x, y), 4)
        got = engine.clipped_sum()
    names = [name for name, _ in module.named_parameters()]
    assert all(float(g.abs().max()) == 0 for name, g in zip(names, got, strict=True) if name.startswith("second"))
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 1e6, "flat", layer_numbers(module))
    assert relative_error(got, truth) < 2e-5


def test_norms_of_one_pass_do_not_reach_the_next() -> None:
    """Trap T5: a 4-D input after a 3-D input of the same batch size is clipped by its own norm."""
    torch.manual_seed(8)
    module = nn.Linear(6, 3)
    small, large, y = torch.randn(4, 2, 6), 100 * torch.randn(4, 2, 5, 6), torch.linspace(-1, 1, 4)
    with GradientEngine(module, Clipping(1.0), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(squared_loss(module, small, y), 4)
        engine.discard()
        engine.backward(squared_loss(module, large, y), 4)
        got = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, large, y), 1.0, "flat", [0, 0])
    assert relative_error(got, truth) < 2e-5


@pytest.mark.parametrize("rows", [2, 3])
def test_a_unit_of_several_rows_is_clipped_once(rows: int) -> None:
    """Augmentations or slices folded into the batch axis: the mean over a unit's rows is what is clipped."""
    torch.manual_seed(9)
    module, _ = net.NETWORKS["cnn"]()
    x, y = torch.randn(4 * rows, 1, 12, 12), torch.linspace(-1, 1, 4 * rows)
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y, rows), 0.5, "flat", layer_numbers(module))
    assert relative_error(engine_sum(module, x, y, Clipping(0.5), units=4), truth) < 2e-5


def test_engine_of_float64_agrees_to_float64() -> None:
    torch.manual_seed(10)
    module, x = net.NETWORKS["cnn"]()
    module, x = module.double(), x.double()
    y = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 0.5, "flat", layer_numbers(module))
    got = engine_sum(module, x, y, Clipping(0.5))
    assert all(g.dtype == torch.float64 for g in got)
    assert relative_error(got, truth) < 1e-5  # the coefficient is rounded up by 2**-20 on purpose


def test_bfloat16_autocast_sums_in_float32() -> None:
    torch.manual_seed(11)
    module, x = net.NETWORKS["cnn"]()
    y = torch.linspace(-1, 1, len(x))
    with GradientEngine(module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1) as engine:
        with torch.autocast("cpu", torch.bfloat16):
            loss = squared_loss(module, x, y)
        engine.backward(loss, len(x))
        got = engine.clipped_sum()
    truth = clipped_sum(unit_gradients(module, squared_loss, x, y), 0.5, "flat", layer_numbers(module))
    assert all(g.dtype == torch.float32 for g in got)
    assert relative_error(got, truth) < 0.1  # bfloat16 activations carry 8 bits


def test_sum_reduction_equals_mean_reduction() -> None:
    torch.manual_seed(12)
    module, x = net.NETWORKS["mlp"]()
    y = torch.linspace(-1, 1, len(x))
    mean = engine_sum(module, x, y, Clipping(0.5))
    with GradientEngine(
        module, Clipping(0.5), noise_multiplier=0.0, expected_batch_size=1, loss_reduction="sum"
    ) as engine:
        engine.backward(squared_loss(module, x, y) * len(x), len(x))
        assert relative_error(engine.clipped_sum(), mean) < 1e-5


def test_opacus_agrees_on_its_own_ground() -> None:
    """Another library's per-sample gradients as the oracle (trap list, section 5, 'take over' 2)."""
    from opacus.grad_sample import GradSampleModule

    torch.manual_seed(13)
    module, x = net.NETWORKS["cnn"]()
    module[2].inplace = False  # Opacus cannot
    y = torch.randint(0, 3, (len(x),))
    with GradientEngine(module, Clipping(0.2), noise_multiplier=0.0, expected_batch_size=1) as engine:
        engine.backward(F.cross_entropy(module(x), y), len(x))
        got = engine.clipped_sum()
    wrapped = GradSampleModule(module, loss_reduction="mean")
    x.requires_grad_(True)  # or PyTorch warns that Opacus' backward hook sees no input gradient
    F.cross_entropy(wrapped(x), y).backward()
    samples = [p.grad_sample for p in module.parameters()]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
    factor = (0.2 / norms).clamp(max=1.0)
    truth = [torch.einsum("u,u...->...", factor, g) for g in samples]
    wrapped.remove_hooks()
    assert relative_error(got, truth) < 2e-5

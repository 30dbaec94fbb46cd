"""The noise is Gaussian, of exactly the right size, once per step, independent of everything, and secret.

The statistics use fixed test seeds, so they never flicker. Each threshold is set at a false-alarm rate of
1e-6: a change of seed or of generator would make one of the tests here fail wrongly less than once in 10^4
times.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_dp.gradients import Clipping, GradientEngine, NoiseSource, UnitMap
from tests.gradients import networks as net

ALARM = 1e-6


def assert_normal(sample: Tensor, std: float) -> None:
    """Variance by chi-squared, mean by z, shape by Kolmogorov and Smirnov, each two-sided at ALARM."""
    x = sample.flatten().double().numpy() / std
    n = len(x)
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], n)
    assert low < (x**2).sum() < high
    assert abs(x.mean()) * n**0.5 < stats.norm.isf(ALARM / 2)
    assert stats.kstest(x, "norm").pvalue > ALARM


def assert_uncorrelated(one: Tensor, other: Tensor) -> None:
    assert one.numel() == other.numel() > 100
    correlation = np.corrcoef(one.flatten().double().numpy(), other.flatten().double().numpy())[0, 1]
    assert abs(correlation) * one.numel() ** 0.5 < stats.norm.isf(ALARM / 2)


def engine_of(module: nn.Module, noise: NoiseSource | None = None, **options: object) -> GradientEngine:
    settings: dict[str, object] = {"noise_multiplier": 1.5, "expected_batch_size": 8, **options}
    clipping = settings.pop("clipping", Clipping(2.0))
    return GradientEngine(module, clipping, noise=noise or NoiseSource(seed=1), **settings)  # type: ignore[arg-type]


def written(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 40))


# --- the source -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1e-3, 1.0, 250.0])
def test_source_is_normal_of_the_given_size(dtype: torch.dtype, std: float) -> None:
    noise = NoiseSource(seed=2).add_(torch.zeros(200_000, dtype=dtype), std)
    assert noise.dtype == dtype
    assert_normal(noise, std)
    assert_uncorrelated(noise[:-1], noise[1:])
    assert_uncorrelated(noise[:-1].square(), noise[1:].square())


@pytest.mark.parametrize("std", [1e-25, 1e25])
def test_sizes_whose_squares_float32_cannot_hold_are_kept(std: float) -> None:
    assert_normal(NoiseSource(seed=6).add_(torch.zeros(20_001), std), std)


def test_the_tail_goes_as_far_as_forty_bits() -> None:
    """The largest radius that the 40 bits give; a sampler of 24 bits would stop at 5.8."""
    source = NoiseSource(seed=7)
    source._bits = AllZeros()  # type: ignore[assignment]
    sample = source.add_(torch.zeros(4), 1.0)
    assert float(sample[0]) == pytest.approx((2 * 41 * np.log(2)) ** 0.5, rel=1e-6)
    assert torch.isfinite(sample).all()


class AllZeros:
    """The rarest draw: every bit is zero."""

    def random_raw(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.zeros(size, dtype=np.uint64)


def test_blocks_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_dp.gradients import noise as module

    monkeypatch.setattr(module, "BLOCK", 4_096)
    noise = NoiseSource(seed=8).add_(torch.zeros(4_096 * 6 + 1_077), 1.0)
    assert_normal(noise, 1.0)
    assert_normal(noise[-1_077:], 1.0)
    assert int((noise == 0).sum()) == 0
    blocks = noise[: 4_096 * 6].view(6, 4_096)
    for first in range(6):
        for second in range(first):
            assert_uncorrelated(blocks[first], blocks[second])


def test_autograd_sees_the_change_in_place() -> None:
    weight = torch.ones(5, requires_grad=True)
    x = torch.ones(5)
    loss = (weight * x).sum()
    NoiseSource(seed=9).add_(x, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        assert_normal(NoiseSource(seed=9).add_(torch.zeros(1_000), 1.0), 1.0)


def test_source_adds_and_does_not_replace() -> None:
    start = torch.arange(5.0)
    noise = NoiseSource(seed=3).add_(torch.zeros(5), 1.0)
    assert torch.allclose(NoiseSource(seed=3).add_(start.clone(), 1.0), start + noise)
    assert torch.equal(NoiseSource(seed=3).add_(start.clone(), 0.0), start)


def test_unseeded_sources_differ() -> None:
    draws = [NoiseSource().add_(torch.zeros(1000), 1.0) for _ in range(4)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert not torch.equal(one, other)
            assert_uncorrelated(one, other)


def test_ranks_of_one_test_seed_differ() -> None:
    one, other = (NoiseSource(seed=4, rank=rank).add_(torch.zeros(10_000), 1.0) for rank in (0, 1))
    assert_uncorrelated(one, other)


def seed_everything(seed: int) -> None:
    from lightning import seed_everything

    seed_everything(seed, verbose=False)


GLOBAL_SEEDS: dict[str, Callable[[int], object]] = {
    "torch.manual_seed": torch.manual_seed,
    "np.random.seed": np.random.seed,
    "random.seed": random.seed,
    "seed_everything": seed_everything,
}


@pytest.mark.parametrize("name", sorted(GLOBAL_SEEDS))
def test_global_seeds_do_not_reach_the_noise(name: str) -> None:
    """Seeds are published with results; noise that follows from one can be subtracted."""
    draws = []
    for _ in range(2):
        GLOBAL_SEEDS[name](5)
        draws.append(NoiseSource().add_(torch.zeros(100), 1.0))
    assert not torch.equal(*draws)
    source = NoiseSource(seed=6)
    GLOBAL_SEEDS[name](5)
    first = source.add_(torch.zeros(100), 1.0)
    GLOBAL_SEEDS[name](5)
    assert not torch.equal(source.add_(torch.zeros(100), 1.0), first)


def test_noise_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    NoiseSource().add_(torch.zeros(100), 1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_torch_cpu_generator_keeps_32_bits_of_a_seed() -> None:
    """Why NumPy's generator is used on CPU: 2^32 seeds can be tried one by one."""
    one = torch.randn(8, generator=torch.Generator().manual_seed(2**32 + 5))
    assert torch.equal(one, torch.randn(8, generator=torch.Generator().manual_seed(5)))
    seeds = [2**32 + 5, 5, 2**200 + 5]
    draws = [NoiseSource(seed=seed).add_(torch.zeros(8), 1.0) for seed in seeds]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])


# --- the engine's use of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clipping", [Clipping(0.25), Clipping(2.0), Clipping(2.0, "per_layer"), Clipping(2.0, "automatic")]
)
def test_scale_follows_the_clipping_and_the_public_batch_size(clipping: Clipping) -> None:
    module = wide()
    with engine_of(module, clipping=clipping, noise_multiplier=3.0, expected_batch_size=16) as engine:
        engine.write_gradients()
    for gradient in written(module):
        if gradient.numel() > 1000:
            assert_normal(gradient, 3.0 * clipping.max_grad_norm / 16)


def test_denominator_is_public_and_not_the_number_of_units() -> None:
    """Dividing by the realised batch size would publish it (list 3b)."""
    torch.manual_seed(8)
    module = nn.Linear(4, 2)
    for units in (1, 3, 5):
        with engine_of(module, noise_multiplier=0.0, expected_batch_size=7.5) as engine:
            engine.backward(module(torch.randn(units, 4)).square().sum(1).mean(), units)
            sums = engine.clipped_sum()
            engine.write_gradients()
        for gradient, total in zip(written(module), sums, strict=True):
            torch.testing.assert_close(gradient, total / 7.5)


def test_noise_is_independent_over_parameters_steps_and_coordinates() -> None:
    module = nn.ModuleList([nn.Linear(50, 60), nn.Linear(50, 60)])
    steps = []
    with engine_of(module) as engine:
        for _ in range(3):
            engine.write_gradients()
            steps.append(written(module))
    weights = [step[i] for step in steps for i in (0, 2)]
    for i, one in enumerate(weights):
        assert_normal(one, 1.5 * 2.0 / 8)
        assert_uncorrelated(one[0:-1], one[1:])
        for other in weights[:i]:
            assert_uncorrelated(one, other)


@pytest.mark.parametrize("physical", [0, 1, 2, 4])
def test_noise_comes_once_per_logical_step(physical: int) -> None:
    """However many physical batches (none at all: the empty draw), one draw; and the draw itself is the same."""
    torch.manual_seed(9)
    module, x = nn.Linear(60, 50), torch.randn(8, 60)
    with engine_of(module, NoiseSource(seed=10)) as engine:
        for part in x.chunk(physical) if physical else ():
            engine.backward(module(part).square().sum(1).mean(), len(part))
        sums = engine.clipped_sum()
        engine.write_gradients()
    reference = NoiseSource(seed=10).add_(torch.zeros(50 * 60 + 50), 3.0)
    noise = torch.cat([(g * 8 - s).flatten() for g, s in zip(written(module), sums, strict=True)])
    torch.testing.assert_close(noise, reference, rtol=0, atol=1e-4)
    assert_normal(noise, 3.0)


def test_the_next_step_starts_from_nothing() -> None:
    torch.manual_seed(11)
    module, x = nn.Linear(4, 2), torch.randn(8, 4)
    with engine_of(module, noise_multiplier=0.0) as engine:
        engine.backward(module(x).square().mean(), 8)
        engine.write_gradients()
        engine.write_gradients()
        assert all(float(g.abs().max()) == 0 for g in written(module))


def test_parameters_without_a_gradient_get_noise_too() -> None:
    """A gradient that is zero exactly where a branch was not used would say which samples were there."""
    module = net.Branches()
    module.use_second = False
    with engine_of(module) as engine:
        engine.backward(module(torch.randn(4, 6)).square().mean(), 4)
        engine.write_gradients()
    assert all(bool((p.grad != 0).all()) for p in module.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in module.parameters())


def test_a_batch_of_units_without_rows_is_noised_like_any_other() -> None:
    module = nn.Linear(4, 2)
    with engine_of(module) as engine:
        engine.backward(module(torch.randn(3, 4)).square().mean(), UnitMap(2, torch.tensor([0, 0, 0])))
        engine.write_gradients()
    assert bool((module.weight.grad != 0).all())


def test_frozen_parameters_get_neither_gradient_nor_noise() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    module[0].requires_grad_(False)
    with engine_of(module) as engine:
        engine.backward(module(torch.randn(3, 4)).square().mean(), 3)
        engine.write_gradients()
    assert module[0].weight.grad is None
    assert module[1].weight.grad is not None


def test_noise_is_float32_under_bfloat16_autocast() -> None:
    """Noise of 8 bits lies on a coarse grid, and the sum's position on it gives the data away (trap T14)."""
    torch.manual_seed(12)
    module = nn.Linear(60, 50)
    with engine_of(module) as engine, torch.autocast("cpu", torch.bfloat16):
        loss = module(torch.randn(4, 60)).float().square().mean()
        engine.backward(loss, 4)
        engine.write_gradients()
        engine.write_gradients()  # an empty step: nothing but noise, whose own grid then shows
    gradient = module.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert len(gradient.unique()) > 0.99 * gradient.numel()  # bfloat16 has a few thousand values there


def test_mixed_parameter_types_are_each_noised_in_their_own() -> None:
    module = nn.ModuleDict({"narrow": nn.Linear(50, 50), "wide": nn.Linear(50, 50).double()})
    with engine_of(module) as engine:
        engine.write_gradients()
    one, other = module["narrow"].weight.grad, module["wide"].weight.grad
    assert one.dtype == torch.float32
    assert other.dtype == torch.float64
    assert not torch.equal(other.float().double(), other)  # not float32 noise in a wider box
    for gradient in (one, other):
        assert_normal(gradient, 1.5 * 2.0 / 8)
    assert_uncorrelated(one, other)


def test_without_noise_nothing_is_drawn() -> None:
    module = nn.Linear(4, 2)
    with engine_of(module, noise_multiplier=0.0) as engine:
        engine.write_gradients()
    assert all(float(g.abs().max()) == 0 for g in written(module))


# --- several ranks ----------------------------------------------------------------------------------------------------


def draw_on_ranks(
    make: Callable[[], nn.Module], world_size: int, noise_of: Callable[[int], NoiseSource]
) -> list[Tensor]:
    """What each rank contributes to the all-reduce of a step without data, times the batch size."""
    contributions = []
    for rank in range(world_size):
        module = make()
        sent: list[Tensor] = []

        def keep(flat: Tensor, sent: list[Tensor] = sent) -> Tensor:
            sent.append(flat.clone())
            return flat

        with engine_of(module, noise_of(rank)) as engine:
            engine.write_gradients(keep, (rank, world_size))
        contributions.append(torch.cat(sent))
    return contributions


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("make", [wide, lambda: nn.Linear(5, 2), lambda: nn.Linear(1, 1)], ids=["wide", "small", "two"])
def test_every_coordinate_gets_exactly_one_draw_over_all_ranks(make: Callable[[], nn.Module], world_size: int) -> None:
    """Twice would waste accuracy, never would leak, and an average over ranks would shrink it by sqrt(W)."""
    parts = draw_on_ranks(make, world_size, lambda rank: NoiseSource(seed=13, rank=rank))
    drawn = torch.stack([part != 0 for part in parts]).sum(0)
    assert torch.equal(drawn, torch.ones_like(drawn))


@pytest.mark.parametrize("world_size", [2, 5])
def test_the_sum_over_ranks_has_the_size_of_one_draw(world_size: int) -> None:
    parts = draw_on_ranks(wide, world_size, lambda rank: NoiseSource(seed=14, rank=rank))
    assert_normal(torch.stack(parts).sum(0), 3.0)
    slices = [part[part != 0] for part in parts]
    shortest = min(len(s) for s in slices)
    for i, one in enumerate(slices):
        for other in slices[:i]:
            assert_uncorrelated(one[:shortest], other[:shortest])


def test_no_rank_knows_more_noise_than_its_slice() -> None:
    parts = draw_on_ranks(wide, 4, lambda _: NoiseSource())
    for part in parts:
        assert float((part != 0).float().mean()) < 0.26


def test_reduction_sums_and_the_denominator_applies_once() -> None:
    """Averaging over ranks, or dividing by the rank's share of the batch, would change noise and signal alike."""
    module = nn.Linear(4, 2)
    with engine_of(module, noise_multiplier=0.0, expected_batch_size=8) as engine:
        engine.backward(module(torch.ones(2, 4)).square().mean(), 2)
        total = engine.clipped_sum()
        engine.write_gradients(lambda flat: flat * 3, (1, 3))
    for gradient, own in zip(written(module), total, strict=True):
        torch.testing.assert_close(gradient, own * 3 / 8)


# --- the bound and the noise are one fact -----------------------------------------------------------------------------


def test_noise_covers_the_bound_that_the_sum_was_clipped_at() -> None:
    """Trap T2 in small: a schedule lowers the bound between the backward pass and the step."""
    torch.manual_seed(15)
    module = nn.Linear(60, 50)
    with engine_of(module, clipping=Clipping(2.0)) as engine:
        engine.backward(module(1e3 * torch.randn(4, 60)).square().mean(), 4)
        total = engine.clipped_sum()[0].clone()
        engine.clipping = Clipping(0.01)
        engine.write_gradients()
        assert_normal(module.weight.grad * 8 - total, 1.5 * 2.0)
        engine.write_gradients()  # from the next step on the lower bound counts, for the clipping and the noise
        assert_normal(module.weight.grad * 8, 1.5 * 0.01)

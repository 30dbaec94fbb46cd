"""The sixteen traps that were found in Opacus 1.6.0, each a test of what this package does in its place.

Every docstring says first what Opacus does (run, or read in its source), then what must be true here.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_dp.accounting import (
    GaussianEvent,
    LedgerEntry,
    PrivacyLedger,
    calibrate_noise_multiplier,
    get_accountant,
)
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine, NoiseSource
from lightning_dp.sampling import (
    PoissonSampler,
    ShuffleSampler,
    build_private_loader,
    key_from_seed,
    loader_batch_size,
    split_draw,
)
from tests.gradients.complex_networks import Parts
from tests.strategies.helpers import Tiny, fit, hooks, loader, strategy

KEY = key_from_seed(0)


def engine_of(module: nn.Module, clipping: Clipping, **options: object) -> GradientEngine:
    settings: dict[str, object] = {"noise_multiplier": 0.0, "expected_batch_size": 1, **options}
    return GradientEngine(module, clipping, **settings)  # type: ignore[arg-type]


def square(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).flatten(1).square().sum(1).mean()


def clipped(module: nn.Module, x: Tensor, bound: float, weights: Tensor | None = None) -> Tensor:
    with engine_of(module, Clipping(bound)) as engine:
        engine.backward(square(module, x), len(x), weights)
        return flat(engine.clipped_sum())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def test_t1_every_sample_is_clipped_by_itself() -> None:
    """Opacus' adaptive ghost clipping scales the batch's mean: one sample made 1000 times larger moves the sum by 160.

    Here 64 samples at C = 0.1 sum up to at most 6.4 whatever the size of one of them, and that one moves it by 0.1.
    """
    module, x = nn.Linear(5, 3), torch.randn(64, 5)
    without = clipped(module, x[1:], 0.1)
    for factor in (1, 10, 100, 1000):
        scaled = torch.cat([x[:1] * factor, x[1:]])
        total = clipped(module, scaled, 0.1)
        assert float(total.norm()) <= 6.4 * 1.0001
        assert float((total - without).norm()) <= 0.1 * 1.0001


def test_t2_the_bound_and_the_noise_are_one_fact() -> None:
    """Opacus' clipping schedule lowers the optimizer's bound and not the module's: the noise is 100 times too small.

    Here noise takes its scale from the object that clips, which nobody can change in place; and replacing it between
    the backward pass and the step leaves the noise at what the sum was clipped to.
    """
    with pytest.raises(dataclasses.FrozenInstanceError):
        Clipping(1.0).max_grad_norm = 0.01  # type: ignore[misc]
    module, x = nn.Linear(50, 50), 1e3 * torch.randn(4, 50)
    for bound in (1.0, 0.01):
        with engine_of(module, Clipping(bound), noise_multiplier=1.0, noise=NoiseSource(seed=1)) as engine:
            engine.backward(square(module, x), 4)
            total = engine.clipped_sum()
            engine.clipping = Clipping(bound / 100)
            engine.write_gradients()
        noise = flat([p.grad - t for p, t in zip(module.parameters(), total, strict=True) if p.grad is not None])
        assert float(noise.std()) == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_t3_all_ranks_take_the_same_steps(world_size: int) -> None:
    """Opacus' distributed sampler drops a rank's empty batches: ranks took 21, 16, 18 steps where 32 were nominal.

    Here every rank has every step, and the same number of physical batches in it, empty shares included.
    """
    sampler = PoissonSampler(64, 2, KEY)
    empty_shares = 0
    for step in range(sampler.steps_per_epoch):
        draw = sampler.draw(step)
        ranks = [split_draw(draw, rank=r, world_size=world_size, physical_batch_size=1) for r in range(world_size)]
        assert len({len(rank.chunks) for rank in ranks}) == 1
        assert all(len(rank.chunks) >= 1 for rank in ranks)
        drawn = [i for rank in ranks for c, real in zip(rank.chunks, rank.real, strict=True) if real for i in c]
        assert sorted(drawn) == draw.tolist()
        empty_shares += sum(not any(rank.real) for rank in ranks)
    assert empty_shares > 0


def test_t4_an_empty_batch_is_empty() -> None:
    """Opacus' rand_on_empty puts a fake row in its place: against the neighbour of one sample, 2 C of difference.

    Here empty draws happen as often as they must; a stand-in keeps user code running and weighs exactly nothing.
    """
    sampler = PoissonSampler(200, 1, KEY)
    sizes = [len(sampler.draw(step)) for step in range(300)]
    expected = 300 * (1 - 1 / 200) ** 200
    assert abs(sizes.count(0) - expected) < 5.4 * (expected * (1 - expected / 300)) ** 0.5  # false alarms: 1e-7
    share = split_draw(np.zeros(0, dtype=np.int64), rank=0, world_size=1, physical_batch_size=None)
    assert share.sizes == (1,)
    assert share.real == (False,)
    module, sample, stand_in = nn.Linear(5, 3), 100 * torch.randn(1, 5), 100 * torch.randn(1, 5)
    empty = clipped(module, stand_in, 1.0, torch.zeros(1))
    assert float(empty.abs().max()) == 0
    assert float((clipped(module, sample, 1.0) - empty).norm()) <= 1.0001


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(5, 3), nn.Linear(5, 3), True

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + (self.b(x) if self.both else 0)


def test_t5_no_norm_outlives_its_pass() -> None:
    """Opacus' ghost mode keeps a layer's norms: of an unused branch, and of a 3-D batch before a 4-D one.

    Here each pass is clipped by its own norms alone.
    """
    module, x = Branching(), torch.randn(4, 5)
    module.both = False
    fresh = clipped(module, x, 1.0)
    with engine_of(module, Clipping(1.0)) as engine:
        module.both = True
        engine.backward(square(module, 1000 * x), 4)
        engine.write_gradients()
        module.both = False
        engine.backward(square(module, x), 4)
        torch.testing.assert_close(flat(engine.clipped_sum()), fresh)

    layer, four = nn.Linear(5, 3), 100 * torch.randn(4, 2, 3, 5)
    fresh = clipped(layer, four, 1.0)
    with engine_of(layer, Clipping(1.0)) as engine:
        engine.backward(square(layer, torch.randn(4, 2, 5)), 4)
        engine.write_gradients()
        engine.backward(square(layer, four), 4)
        torch.testing.assert_close(flat(engine.clipped_sum()), fresh)


def test_t6_physical_batches_add_up() -> None:
    """Opacus' ghost mode zeroes gradients in each backward pass: accumulated by hand, only the last batch survives.

    Here several backward passes give the sum over the whole logical batch, however it is split.
    """
    module, x = nn.Linear(5, 3), torch.randn(12, 5)
    whole = clipped(module, x, 0.5)
    for sizes in ([4, 4, 4], [1] * 12, [11, 1]):
        with engine_of(module, Clipping(0.5)) as engine:
            for part in x.split(sizes):
                engine.backward(square(module, part), len(part))
            torch.testing.assert_close(flat(engine.clipped_sum()), whole)


def test_t7_all_ranks_clip_at_one_bound() -> None:
    """Opacus' adaptive bound drifts apart over ranks, each with count noise of its own (1.02698 against 1.02745).

    Here the bound is a constant that no data and no noise can reach, and W ranks' shares add up to one rank's step.
    """
    with pytest.raises(PrivacyConfigError, match="unknown clipping"):
        Clipping(1.0, "adaptive")  # type: ignore[arg-type]
    module, x = nn.Linear(5, 3), 10 * torch.randn(9, 5)
    alone = clipped(module, x, 0.5)
    shares, bounds = [], set()
    for rank in range(3):
        with engine_of(module, Clipping(0.5)) as engine:
            engine.backward(square(module, x[rank::3]), 3)
            bounds.add(engine.clipping.sensitivity)
            engine.write_gradients(lambda t: t, (rank, 3))
        shares.append(flat([p.grad for p in module.parameters() if p.grad is not None]))
    assert bounds == {0.5}
    torch.testing.assert_close(torch.stack(shares).sum(0), alone)


def test_t7_ranks_are_summed_and_not_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process group is asked for the sum: a mean would shrink the noise to 1 / W of what is accounted."""
    plugin = strategy(parallel_devices=[torch.device("cpu")] * 3)
    assert plugin.is_distributed
    monkeypatch.setattr(type(plugin), "world_size", property(lambda _: 3))

    def all_reduce(tensor: Tensor, op: object) -> None:
        assert op == torch.distributed.ReduceOp.SUM
        tensor.mul_(3)  # three ranks that hold the same

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    torch.testing.assert_close(plugin.sum_over_ranks(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 6.0]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_t8_one_sample_that_is_not_finite_neither_destroys_nor_shows(value: float) -> None:
    """Opacus lets one NaN or infinite sample turn all parameters into NaN, which also publishes that it was there.

    Here it adds nothing, is counted, and leaves the others' sum as it was.
    """
    module, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(6, 5)
    without = clipped(module, x[1:], 0.5)
    x[0] = value
    with engine_of(module, Clipping(0.5)) as engine:
        engine.backward(square(module, x), 6)
        torch.testing.assert_close(flat(engine.clipped_sum()), without)
        assert engine.dropped_units == 1


def test_t9_no_step_is_lost_to_rounding() -> None:
    """Opacus takes int(1 / (1 / n)) steps: of 93, 99, 105 ... one goes missing, and so does its charge.

    Here steps and charges are counted in whole numbers.
    """
    for n in range(1, 2000):
        assert PoissonSampler(n, 1, KEY).steps_per_epoch == n
    for n, batch in ((93, 1), (99, 3), (1000, 7), (5000, 49)):
        poisson, shuffle = PoissonSampler(n, batch, KEY), ShuffleSampler(n, batch, KEY)
        steps = -(-n // batch)
        assert poisson.steps_per_epoch == shuffle.steps_per_epoch == steps
        assert poisson.compositions(3 * steps) == 3 * steps
        assert shuffle.compositions(3 * steps) == 3


def test_t10_the_rate_is_batch_over_n_and_the_denominator_is_public() -> None:
    """Opacus takes 1 / len(loader) for the rate, and floors the denominator: N = 100, B = 30 counts as 0.25 or 1/3.

    Here q = 0.3, the batch is 30 on average, and gradients are divided by 30 whatever was drawn.
    """
    for drop_last in (False, True):
        data = loader(100, 30, drop_last=drop_last)
        sampler = PoissonSampler(100, loader_batch_size(data), KEY)
        assert sampler.sample_rate == sampler.event(1.0).sample_rate == 0.3
        assert sampler.expected_batch_size == 30
        private = build_private_loader(
            data, sampler, rank=0, world_size=1, physical_batch_size=None, position=lambda: 0
        )
        assert private.batch_size == 30
    sizes = [len(sampler.draw(step)) for step in range(2000)]
    assert abs(np.mean(sizes) - 30) < 5.4 * (21 / 2000) ** 0.5  # false alarms: 1e-7
    module = nn.Linear(5, 3)
    for drawn in (1, 17):
        x = torch.randn(drawn, 5)
        with engine_of(module, Clipping(0.5), expected_batch_size=sampler.expected_batch_size) as engine:
            engine.backward(square(module, x), drawn)
            total = flat(engine.clipped_sum())
            engine.write_gradients()
        torch.testing.assert_close(flat([p.grad for p in module.parameters() if p.grad is not None]), total / 30)


def test_t11_shuffled_batches_claim_no_amplification() -> None:
    """Opacus reports the amplified eps of Poisson sampling for poisson_sampling=False: 1.21 for 100 steps.

    Here the sampler brings its own event, at rate 1, and an event of shuffled batches at a lower rate does not exist.
    """
    poisson, shuffle = (kind(10_000, 100, KEY) for kind in (PoissonSampler, ShuffleSampler))
    assert poisson.event(1.0) == GaussianEvent(1.0, 0.01, "poisson")
    assert shuffle.event(1.0) == GaussianEvent(1.0, 1.0, "shuffle")
    with pytest.raises(PrivacyConfigError, match="without amplification"):
        GaussianEvent(1.0, 0.01, "shuffle")
    spent = {}
    for sampler in (poisson, shuffle):
        ledger, previous = PrivacyLedger(), None
        for step in range(sampler.steps_per_epoch):
            if sampler.charges(step, previous):
                ledger.charge(sampler.event(1.0))
            previous = step
        spent[sampler.sampling] = get_accountant("pld").epsilon(ledger.entries, 1e-5)
    assert spent["poisson"] < 1.5
    assert spent["shuffle"] > 4  # one Gaussian mechanism of noise multiplier 1: eps = 4.377 (Balle and Wang 2018)


@pytest.mark.parametrize(
    ("setting", "fix"),
    [({"accumulate_grad_batches": 2}, "physical_batch_size"), ({"gradient_clip_val": 1.0}, "max_grad_norm")],
)
def test_t12_lightning_settings_that_change_the_mechanism_are_refused(setting: dict[str, object], fix: str) -> None:
    """Opacus under Lightning accepts both in silence: one multiplies the rate, the other clips what is thrown away.

    Here they are refused before anything runs, with the setting to use instead.
    """
    module = Tiny()
    with pytest.raises(PrivacyConfigError, match=fix):
        fit(module, strategy(), **setting)
    assert module.calls == 0


def test_t13_the_optimizer_stays_what_it_is() -> None:
    """Opacus' optimizer has no step hooks, cannot be copied, returns None for a closure's loss, and patches its class.

    Here the user's own object steps, with its hooks, its return value and its class untouched.
    """
    seen: list[str] = []

    def optimizer_of(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        return optimizer

    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # torch itself wraps a class' step when the first object is made
    module, step = Tiny(optimizer=optimizer_of), torch.optim.SGD.step
    trainer = fit(module, strategy(), max_epochs=1)
    steps = trainer.global_step
    assert steps > 0
    assert seen == ["before", "after"] * steps
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.SGD
    assert copy.deepcopy(optimizer).state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    assert torch.optim.SGD.step is step
    assert not hooks(module)


def test_t14_noise_is_drawn_in_single_precision() -> None:
    """Opacus draws noise in the parameters' type: for bfloat16, 8 bits.

    Here parameters of that type are refused, and under autocast sums, norms and noise are float32.
    """
    with pytest.raises(PrivacyConfigError, match="float32"):
        engine_of(nn.Linear(5, 3).bfloat16(), Clipping(1.0))
    module = nn.Linear(64, 64)
    with engine_of(module, Clipping(1.0), noise_multiplier=1.0) as engine, torch.autocast("cpu", torch.bfloat16):
        engine.backward(square(module, torch.randn(4, 64)), 4)
        assert all(t.dtype == torch.float32 for t in engine.clipped_sum())
        engine.write_gradients()
        engine.write_gradients()  # an empty step: nothing but noise, whose own grid then shows
    gradient = module.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert float((gradient.bfloat16().float() == gradient).float().mean()) < 0.01


@pytest.mark.parametrize("accountant", ["pld", "rdp", "prv"])
def test_t15_large_eps_is_answered_in_bounded_memory(accountant: str) -> None:
    """Opacus' PRV accountant asks for one array of 4.6 GiB to calibrate to eps = 1000, and the process dies.

    Here that calibration succeeds, or is refused by name (PRV), within a quarter of a gigabyte.
    """
    tracemalloc.start()
    try:
        if accountant == "prv":
            with pytest.raises(PrivacyConfigError, match="accountant='pld'"):
                calibrate_noise_multiplier(eps=1000, delta=1e-5, sample_rate=0.004, steps=1000, accountant="prv")
        else:
            sigma = calibrate_noise_multiplier(
                eps=1000,
                delta=1e-5,
                sample_rate=0.004,
                steps=1000,
                accountant=accountant,  # type: ignore[arg-type]
            )
            entries = [LedgerEntry(GaussianEvent(sigma, 0.004), 1000)]
            assert 900 < get_accountant(accountant).epsilon(entries, 1e-5) <= 1000  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**28


def test_t16_complex_parameters_are_conjugated_and_noised_on_both_parts() -> None:
    """Opacus accepts them, does not conjugate, and noises each real coordinate sqrt(2) too little."""
    torch.manual_seed(16)
    layer, x = nn.Linear(40, 50, dtype=torch.complex64), torch.randn(1, 40, dtype=torch.complex64)
    module = nn.Sequential(layer, Parts())
    (plain,) = torch.autograd.grad(square(module, x), [layer.weight])
    with engine_of(module, Clipping(1e6)) as engine:
        engine.backward(square(module, x), 1)
        weight, _ = engine.clipped_sum()
    torch.testing.assert_close(weight, plain)
    with engine_of(module, Clipping(2.0), noise_multiplier=3.0) as engine:
        engine.write_gradients()
    assert layer.weight.grad is not None
    noise = torch.view_as_real(layer.weight.grad)
    for part in noise.unbind(-1):  # 2,000 numbers each: the standard error of their deviation is 1.6 %
        assert abs(float(part.std()) / 6.0 - 1) < 0.08

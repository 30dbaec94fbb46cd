"""A threshold that follows a quantile: what it costs, what it counts, where it goes, and that it stays one on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.accounting import GaussianEvent, LedgerEntry, get_accountant
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import AdaptiveClipping, AdaptiveThreshold, Clipping, GradientEngine, NoiseSource
from tests.gradients.oracle import clipped_sum, squared_loss, unit_gradients

CPU = torch.device("cpu")


def release(threshold: AdaptiveThreshold, z: float = 0.0, batch_size: float = 8.0, *, rank: int = 0) -> float:
    """Releases a step and returns by how much the logarithm of the threshold moved."""
    before = threshold.clipping.max_grad_norm
    return math.log(threshold.release(z, batch_size, NoiseSource(), None, rank, CPU).max_grad_norm / before)


# --- what it costs ----------------------------------------------------------------------------------------------------
@settings(max_examples=60)
@given(z=st.floats(0.05, 50), share=st.floats(0.51, 100))
def test_gradients_and_count_together_are_the_nominal_mechanism(z: float, share: float) -> None:
    """By the closed form of two Gaussian mechanisms: the count has sensitivity 1/2, so its multiplier is 2 sigma."""
    config = AdaptiveClipping(count_noise=share * z)
    raised = config.gradient_noise_multiplier(z, 100)
    assert raised > z
    accountant = get_accountant("pld")
    pair = [LedgerEntry(GaussianEvent(raised), 1), LedgerEntry(GaussianEvent(2 * share * z), 1)]
    one = [LedgerEntry(GaussianEvent(z), 1)]
    assert accountant.epsilon(pair, 1e-6) == pytest.approx(accountant.epsilon(one, 1e-6), rel=1e-9)


def test_the_default_takes_little_from_the_gradients() -> None:
    config = AdaptiveClipping()
    assert config.count_std(1.0, 1000) == 50  # a twentieth of the batch, as in the paper
    assert config.count_std(2.0, 64) == 10
    for z, batch_size in ((0.3, 16), (1.0, 16), (5.0, 64), (1.0, 4096)):
        assert 1.0 < config.gradient_noise_multiplier(z, batch_size) / z < 1.0051


@settings(max_examples=60)
@given(
    row=st.integers(0, 3),
    kind=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e15, math.inf, math.nan]),
    threshold=st.floats(1e-3, 1e3),
    split=st.sampled_from([1, 3, 100]),
)
def test_one_unit_moves_the_pair_by_at_most_what_is_accounted(
    row: int, kind: float, threshold: float, split: int
) -> None:
    """Gradient sum and count, each over its noise: the step between neighbours has length at most 1 / z."""
    torch.manual_seed(0)
    module, x, y = nn.Linear(5, 2), torch.randn(4, 5), torch.linspace(-1, 1, 4)
    x[row] *= kind
    z, config = 1.5, AdaptiveClipping(count_noise=1.0)

    def scaled(rows: list[int]) -> Tensor:
        moving = AdaptiveThreshold(config, threshold)
        with GradientEngine(module, moving, noise_multiplier=z, expected_batch_size=4) as engine:
            for start in range(0, len(rows), split):
                part = rows[start : start + split]
                engine.backward(squared_loss(module, x[part], y[part]), len(part))
            assert moving._count is not None
            sums = torch.cat([g.flatten().double() for g in engine.clipped_sum()])
            pair = [sums / (engine.gradient_noise_multiplier * threshold), moving._count.double().reshape(1) / 1.0]
            return torch.cat(pair)

    moved = scaled([0, 1, 2, 3]) - scaled([i for i in range(4) if i != row])
    assert float(moved.norm()) <= (1 + 1e-5) / z


def test_the_gradients_get_the_raised_noise() -> None:
    module, moving = nn.Linear(200, 200), AdaptiveThreshold(AdaptiveClipping(count_noise=1.2), 0.5)
    with GradientEngine(module, moving, noise_multiplier=2.0, expected_batch_size=4) as engine:
        engine.write_gradients()
    raised = (1 / 4 - 1 / (4 * 1.2**2)) ** -0.5
    assert raised == pytest.approx(3.618, rel=1e-3)
    assert module.weight.grad is not None
    assert float(module.weight.grad.std()) == pytest.approx(raised * 0.5 / 4, rel=0.02)


def test_the_count_gets_its_own_noise() -> None:
    """4000 releases of nothing: what moves the threshold is the noise alone, of the configured size."""
    moves, source = [], NoiseSource()
    for _ in range(4000):
        moving = AdaptiveThreshold(AdaptiveClipping(learning_rate=1.0, count_noise=3.0))
        moves.append(8.0 * math.log(moving.release(1.0, 8.0, source, None, 0, CPU).max_grad_norm))
    found = torch.tensor(moves)
    assert abs(float(found.mean())) < 5 * 3 / math.sqrt(4000)
    assert float(found.std()) == pytest.approx(3.0, rel=5 / math.sqrt(8000))


@pytest.mark.parametrize("count_noise", [0.0, 0.4, 0.5])
def test_a_count_that_would_cost_the_whole_step_is_refused(count_noise: float) -> None:
    moving = AdaptiveThreshold(AdaptiveClipping(count_noise=count_noise))
    with GradientEngine(nn.Linear(2, 2), moving, noise_multiplier=1.0, expected_batch_size=4) as engine:  # noqa: SIM117
        with pytest.raises(PrivacyConfigError, match="leaves nothing for the gradients"):
            engine.write_gradients()


# --- what it counts ---------------------------------------------------------------------------------------------------
def test_the_denominator_is_the_expected_batch_size() -> None:
    """Ten units below in a step that expected forty: the share is 1/2 + 10 (1 - 1/2) / 40, whatever came."""
    moving = AdaptiveThreshold(AdaptiveClipping(quantile=0.5, learning_rate=1.0))
    moving.observe(torch.full((10,), 0.25))
    assert release(moving, batch_size=40) == pytest.approx(-0.125)


def test_units_that_are_not_finite_are_above_and_stand_ins_are_nothing() -> None:
    moving = AdaptiveThreshold(AdaptiveClipping(quantile=0.5, learning_rate=1.0))
    moving.observe(torch.tensor([math.nan, math.inf, 4.0, 0.25, 0.25]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert release(moving, batch_size=4) == pytest.approx(0.25)


def test_an_empty_draw_counts_half() -> None:
    moving = AdaptiveThreshold(AdaptiveClipping(quantile=0.75, learning_rate=0.2))
    assert release(moving) == pytest.approx(0.2 * 0.25)
    assert AdaptiveThreshold(AdaptiveClipping()).clipping == Clipping(1.0)


def test_physical_batches_share_one_threshold_and_one_count() -> None:
    torch.manual_seed(0)
    module, x, y = nn.Linear(5, 2), torch.randn(6, 5), torch.linspace(-1, 1, 6)
    results = []
    for split in (1, 4, 6):
        moving = AdaptiveThreshold(AdaptiveClipping(learning_rate=1.0), 2.0)
        with GradientEngine(module, moving, noise_multiplier=0.0, expected_batch_size=6) as engine:
            for start in range(0, 6, split):
                part = slice(start, start + split)
                engine.backward(squared_loss(module, x[part], y[part]), len(x[part]))
                assert engine.clipping.max_grad_norm == 2.0
            sums = engine.clipped_sum()
            engine.write_gradients()
            results.append((sums, engine.clipping.max_grad_norm))
    units = unit_gradients(module, squared_loss, x, y)
    norms = [math.sqrt(sum(float(g.double().square().sum()) for g in unit)) for unit in units]
    below = sum(norm <= 2.0 for norm in norms)
    assert 0 < below < 6
    for sums, threshold in results:
        torch.testing.assert_close(sums, clipped_sum(units, 2.0, "flat", [0, 0]))
        assert threshold == pytest.approx(2.0 * math.exp(-(below / 6 - 0.5)))


def test_a_discarded_step_is_not_counted() -> None:
    module, moving = nn.Linear(5, 2), AdaptiveThreshold(AdaptiveClipping(learning_rate=1.0))
    with GradientEngine(module, moving, noise_multiplier=0.0, expected_batch_size=3) as engine:
        engine.backward(squared_loss(module, 100 * torch.randn(3, 5), torch.ones(3)), 3)
        engine.discard()
        engine.write_gradients()
        assert engine.clipping.max_grad_norm == pytest.approx(1.0)


# --- where it goes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("first", [0.01, 100.0])
def test_it_finds_the_quantile(quantile: float, first: float) -> None:
    """Log-normal norms, with the noise of a private run: within a tenth of the quantile after 300 steps."""
    torch.manual_seed(0)
    moving, source, late = AdaptiveThreshold(AdaptiveClipping(quantile), first), NoiseSource(seed=1), []
    for step in range(300):
        moving.observe((2 * torch.randn(512)).exp())
        moving.release(1.0, 512, source, None, 0, CPU)
        late += [math.log(moving.clipping.max_grad_norm)] if step >= 200 else []
    expected = float(torch.distributions.Normal(0, 1).icdf(torch.tensor(quantile)))
    assert sum(late) / len(late) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("squares", [0.0, 1e30, math.nan])
def test_it_keeps_away_from_zero_and_infinity(squares: float) -> None:
    moving = AdaptiveThreshold(AdaptiveClipping(quantile=0.5, learning_rate=10.0))
    for _ in range(50):
        moving.observe(torch.full((400,), squares))
        moving.release(0.0, 4.0, NoiseSource(), None, 0, CPU)
        assert 1e-6 <= moving.clipping.max_grad_norm <= 1e6


def test_the_threshold_moves_only_with_a_release_and_the_noise_with_the_threshold() -> None:
    module, moving = nn.Linear(100, 100), AdaptiveThreshold(AdaptiveClipping(learning_rate=1.0, count_noise=100.0))
    with GradientEngine(module, moving, noise_multiplier=1.0, expected_batch_size=100) as engine:
        for _ in range(5):
            bound = engine.clipping.max_grad_norm
            engine.write_gradients()
            assert module.weight.grad is not None
            assert float(module.weight.grad.std()) * 100 == pytest.approx(bound, rel=0.05)
            assert engine.clipping.max_grad_norm != bound


# --- ranks and checkpoints --------------------------------------------------------------------------------------------
def test_ranks_agree_and_the_noise_comes_once() -> None:
    """Two ranks by hand: the reduction hands each the sum of both; only rank 0 adds noise before it."""
    config = AdaptiveClipping(learning_rate=1.0, count_noise=2.0)
    ranks = [AdaptiveThreshold(config), AdaptiveThreshold(config)]
    ranks[0].observe(torch.tensor([0.1, 9.0]))
    ranks[1].observe(torch.tensor([0.1, 0.1, 0.1]))
    sent: dict[int, Tensor] = {}

    def sending(rank: int) -> Callable[[Tensor], Tensor]:
        return lambda count: sent.setdefault(rank, count.clone())

    twins = [AdaptiveThreshold(config) for _ in range(2)]
    for rank in (0, 1):
        twins[rank]._count = ranks[rank]._count
        twins[rank].release(1.0, 8.0, NoiseSource(), sending(rank), rank, CPU)
    assert float(sent[1]) == 1.5  # no noise
    assert float(sent[0]) != 0.0
    total = sent[0] + sent[1]
    moved = {ranks[r].release(1.0, 8.0, NoiseSource(), lambda _: total, r, CPU).max_grad_norm for r in (0, 1)}
    assert len(moved) == 1


def test_the_threshold_is_saved_and_goes_on() -> None:
    moving = AdaptiveThreshold(AdaptiveClipping(), 0.3)
    release(moving, z=1.0)
    other = AdaptiveThreshold(AdaptiveClipping(), 5.0)
    other.load_state_dict(moving.state_dict())
    assert other.clipping == moving.clipping
    for broken in ({}, {"max_grad_norm": math.nan}, {"max_grad_norm": "1"}):
        with pytest.raises(PrivacyError, match="restore an intact checkpoint"):
            other.load_state_dict(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantile": 0.0}, "quantile"),
        ({"quantile": 1.0}, "quantile"),
        ({"quantile": math.nan}, "quantile"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"count_noise": -1.0}, "count_noise"),
        ({"count_noise": math.inf}, "count_noise"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        AdaptiveClipping(**arguments)

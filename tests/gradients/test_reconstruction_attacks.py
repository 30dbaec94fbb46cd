"""Attacks run on the engine's own private gradients: they obey the laws, stay under the bounds, and come close to them.

Each comparison is made at a false-alarm rate of 1e-6, with fixed test seeds. The attacks are strong enough for the tests to
fail: halving the engine's noise breaks all of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor, nn

from lightning_dp.accounting import (
    FromScratchAttack,
    GaussianEvent,
    LedgerEntry,
    from_scratch_attack,
    gaussian_gamma,
    reconstruction_bound,
)
from lightning_dp.gradients import Clipping, GradientEngine, NoiseSource

ALARM = 1e-6
BOUND = 0.8


class Imprint(nn.Module):
    """A malicious layer: its gradient is the input, once in every row."""

    def __init__(self, inputs: int, queries: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, queries, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).sum(1)


def engine_on(module: nn.Module, noise_multiplier: float, seed: int) -> GradientEngine:
    return GradientEngine(
        module,
        Clipping(BOUND),
        noise_multiplier=noise_multiplier,
        expected_batch_size=1,
        loss_reduction="sum",
        noise=NoiseSource(seed=seed),
    )


def release(engine: GradientEngine, batch: Tensor) -> Tensor:
    """One private gradient of a batch, which may be empty."""
    if len(batch):
        engine.backward(engine.module(batch).sum(), len(batch))
    engine.write_gradients()
    (parameter,) = engine.module.parameters()
    assert parameter.grad is not None
    return parameter.grad.clone()


def interval(successes: int, runs: int) -> tuple[float, float]:
    """Clopper and Pearson's, each side at ALARM / 2."""
    low = float(beta.ppf(ALARM / 2, successes, runs - successes + 1)) if successes else 0.0
    high = float(beta.isf(ALARM / 2, successes + 1, runs - successes)) if successes < runs else 1.0
    return low, high


# --- from scratch -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("queries", "norm", "steps"), [(1, 1.3, 1), (5, 0.9, 1), (3, 2.0, 4)])
def test_imprinted_reconstruction_obeys_the_gamma_law(queries: int, norm: float, steps: int) -> None:
    """Average the rows, undo the clipping, average over the steps."""
    inputs, sigma, runs = 6, 0.5, 600
    x = torch.randn(1, inputs, generator=torch.Generator().manual_seed(4))
    x *= norm / x.norm()
    undo = max(1.0, math.sqrt(queries) * norm / BOUND)
    errors = []
    with engine_on(Imprint(inputs, queries), sigma, seed=21) as engine:
        for _ in range(runs):
            seen = torch.stack([release(engine, x).mean(0) * undo for _ in range(steps)]).mean(0)
            errors.append(float((seen - x[0]).square().mean()))
    entries = [LedgerEntry(GaussianEvent(sigma), steps)]
    attack = from_scratch_attack(entries, inputs, norm)
    assert kstest(errors, attack.mse_cdf).pvalue > ALARM
    for wrong in (0.5, 2.0):
        law = FromScratchAttack(wrong * attack.noise_multiplier, inputs, norm)
        assert kstest(errors, law.mse_cdf).pvalue < ALARM


# --- matching games ---------------------------------------------------------------------------------------------------
def play(candidates: Tensor, sigma: float, rate: float, steps: int, runs: int, seed: int) -> int:
    """How often the likelihood names the one of some equally likely candidates that was trained on.

    The candidates' gradients are clipped to the bound; everything but the target is known, so the batch is the target alone.
    """
    generator = np.random.default_rng(seed)
    directions = (candidates / candidates.norm(dim=1, keepdim=True)).double()
    successes = 0
    with engine_on(Imprint(candidates.shape[1], 1), sigma, seed) as engine:
        for _ in range(runs):
            target = int(generator.integers(len(candidates)))
            scores = torch.zeros(len(candidates), dtype=torch.float64)
            for _ in range(steps):
                drawn = generator.random() < rate
                output = release(engine, candidates[target : target + 1] if drawn else candidates[:0])
                match = directions @ output[0].double() / (BOUND * sigma)  # N(0, 1), shifted by 1 / sigma if drawn
                scores += torch.log1p(rate * torch.expm1(match / sigma - 0.5 / sigma**2))
            # Scores that tie (no step told anything) are broken at random.
            best = torch.nonzero(scores == scores.max())[:, 0]
            successes += int(best[int(generator.integers(len(best)))]) == target
    return successes


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "runs"), [(1.0, 1.0, 1, 1500), (2.0, 1.0, 4, 600), (0.6, 0.3, 6, 600)]
)
def test_two_opposite_candidates_are_the_worst_case(sigma: float, rate: float, steps: int, runs: int) -> None:
    """kappa = 1/2: half-spaces are the best tests, so the attack reaches the bound (up to the subsampling)."""
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    successes = play(3.0 * torch.cat((x, -x)), sigma, rate, steps, runs, seed=31)
    bound = reconstruction_bound([LedgerEntry(GaussianEvent(sigma, rate), steps)], 0.5, "remove")
    low, high = interval(successes, runs)
    assert low <= bound.gamma
    assert successes / runs > 0.5 + 0.8 * (bound.gamma - 0.5)
    if rate == 1.0:
        assert bound.gamma <= high


@pytest.mark.parametrize(("sigma", "rate", "steps", "runs"), [(0.5, 1.0, 1, 1000), (0.5, 0.2, 5, 500)])
def test_orthogonal_candidates_stay_under_the_bound(sigma: float, rate: float, steps: int, runs: int) -> None:
    """kappa = 1/10. No test of ten equal regions is a half-space, so the bound is not reached, but more than half of it is."""
    successes = play(2.0 * torch.eye(10), sigma, rate, steps, runs, seed=47)
    gamma = reconstruction_bound([LedgerEntry(GaussianEvent(sigma, rate), steps)], 0.1).gamma
    assert interval(successes, runs)[0] <= gamma
    assert successes / runs > 0.1 + 0.5 * (gamma - 0.1)


def test_at_a_small_kappa_the_best_test_reaches_gamma() -> None:
    """One candidate, named where the output lies far enough in its direction: right by chance in a share kappa of runs."""
    sigma, kappa, runs = 0.5, 0.05, 1500
    x = torch.zeros(1, 5)
    x[0, 2] = 4.0
    threshold = 1.6448536269514722  # the normal quantile of 1 - kappa
    hits = {}
    with engine_on(Imprint(5, 1), sigma, seed=5) as engine:
        for used in (False, True):
            outputs = [release(engine, x if used else x[:0])[0, 2] / (BOUND * sigma) for _ in range(runs)]
            hits[used] = sum(float(output) > threshold for output in outputs)
    for used, chance in ((False, kappa), (True, float(gaussian_gamma(kappa, 1.0 / sigma)))):
        low, high = interval(hits[used], runs)
        assert low <= chance <= high

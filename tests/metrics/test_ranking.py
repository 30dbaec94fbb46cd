"""DeLong's interval from scores: against the placement values one by one, a bootstrap, scikit-learn, and its own coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from sklearn.metrics import roc_auc_score

from lightning_dp.metrics import delong_auroc


def sample(seed: int, positives: int = 60, negatives: int = 90, shift: float = 0.8, decimals: int | None = None) -> Any:
    rng = np.random.default_rng(seed)
    targets = np.r_[np.ones(positives, int), np.zeros(negatives, int)]
    scores = rng.normal(size=len(targets)) + shift * targets
    order = rng.permutation(len(targets))
    return (scores if decimals is None else scores.round(decimals))[order], targets[order]


def by_placement(scores: Any, targets: Any, confidence: float) -> tuple[float, float, float]:
    """DeLong et al. 1988, equations 4 to 6, as they stand: every positive with every negative."""
    x, y = scores[targets == 1], scores[targets == 0]
    psi = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    area = psi.mean()
    variance = psi.mean(1).var(ddof=1) / len(x) + psi.mean(0).var(ddof=1) / len(y)
    half = ndtri(0.5 + confidence / 2) * math.sqrt(variance)
    return area, max(0.0, area - half), min(1.0, area + half)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_formula_by_placement_values(seed: int, confidence: float, decimals: int | None) -> None:
    scores, targets = sample(seed, decimals=decimals)
    found = delong_auroc(scores, targets, confidence)
    assert (found.value, found.low, found.high) == pytest.approx(by_placement(scores, targets, confidence), abs=1e-12)
    assert found.value == pytest.approx(roc_auc_score(targets, scores), abs=1e-12)
    assert found.n == len(targets)


def test_is_near_a_bootstrap() -> None:
    """2000 redraws within each class: the ends within 0.02, about twice what the percentiles themselves vary by."""
    scores, targets = sample(7, 150, 200)
    rng = np.random.default_rng(0)
    x, y = scores[targets == 1], scores[targets == 0]
    above = (x[:, None] > y[None]).astype(float)
    a, b = (rng.multinomial(len(z), np.full(len(z), 1 / len(z)), 2000) / len(z) for z in (x, y))
    areas = ((a @ above) * b).sum(1)
    found = delong_auroc(scores, targets)
    assert [found.low, found.high] == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)


def test_covers_the_true_area() -> None:
    """Normal scores one apart have the area Phi(1 / sqrt 2). 95 % of 600 intervals, within three standard errors and the 1 %
    that a normal interval on a bounded number may be off."""
    from scipy.stats import norm

    truth = norm.cdf(1 / math.sqrt(2))
    found = [delong_auroc(*sample(seed, 60, 60, shift=1.0)) for seed in range(600)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 600) + 0.01


def test_takes_lists_arrays_and_tensors_in_any_order() -> None:
    scores, targets = sample(1)
    whole = delong_auroc(scores, targets)
    assert delong_auroc(torch.tensor(scores), torch.tensor(targets)) == whole
    assert delong_auroc(list(scores), targets.astype(bool)) == whole
    turned = np.argsort(scores)[::-1].copy()
    assert delong_auroc(scores[turned], targets[turned]) == whole
    assert delong_auroc(-scores, targets).value == pytest.approx(1 - whole.value)


def test_says_why_there_is_none() -> None:
    assert delong_auroc([0.1, 0.2], [1, 1]).reason == "no negatives"
    assert delong_auroc([], []).reason == "no samples"
    perfect = delong_auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert perfect.value == 1.0
    assert math.isnan(perfect.low)


@pytest.mark.parametrize(
    ("scores", "targets", "words"),
    [
        ([0.1, 0.2], [0, 1, 1], "both must be"),
        ([[0.1, 0.9]], [[0, 1]], "both must be"),
        ([0.1, math.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], "0 or 1"),
    ],
)
def test_refuses_what_is_no_ranking(scores: Any, targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        delong_auroc(scores, targets)

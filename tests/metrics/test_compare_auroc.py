from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lightning_dp.metrics.functional import compare_auroc


def scores(n: int = 300, quality: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 2)) < 0.4).astype(int)
    return np.round(quality * targets + rng.standard_normal((n, 2)), 1), targets  # with ties


def test_values_are_those_of_scikit_learn() -> None:
    first, targets = scores()
    found = compare_auroc(first, -first, targets, n_boot=5)
    for k in range(2):
        assert found.first[k] == pytest.approx(roc_auc_score(targets[:, k], first[:, k]))
    assert found.second == pytest.approx(1 - found.first)


def test_a_better_model_is_surely_better_and_a_worse_one_surely_not() -> None:
    first, targets = scores(quality=2.0)
    second = np.random.default_rng(1).standard_normal(first.shape)
    assert compare_auroc(first, second, targets, n_boot=200).p.max() < 0.01
    assert compare_auroc(second, first, targets, n_boot=200).p_mean > 0.99


def test_identical_models_are_neither() -> None:
    first, targets = scores()
    found = compare_auroc(first, first, targets, n_boot=50)
    assert found.p.tolist() == [0.5, 0.5]
    assert found.p_mean == 0.5


def test_equally_good_models_give_no_small_p_too_often() -> None:
    """One-sided p is about uniform: below 0.1 in about a tenth of 100 pairs."""
    rng, small = np.random.default_rng(0), 0
    for seed in range(100):
        targets = (rng.random(150) < 0.5).astype(int)
        a, b = (targets + rng.standard_normal(150) for _ in range(2))
        small += compare_auroc(a, b, targets, n_boot=100, seed=seed).p[0] < 0.1
    assert 1 <= small <= 24


def test_redraws_are_the_same_for_both_models() -> None:
    """A model and a copy shifted by a constant rank alike in every redraw."""
    first, targets = scores()
    found = compare_auroc(first, first + 3.0, targets, n_boot=50)
    np.testing.assert_array_equal(found.first_interval, found.second_interval)
    assert (found.first_interval[:, 0] < found.first).all()
    assert (found.first < found.first_interval[:, 1]).all()


def test_the_order_of_the_samples_does_not_matter_to_the_values() -> None:
    first, targets = scores()
    turned = compare_auroc(first[::-1], first[::-1], targets[::-1], n_boot=2)
    np.testing.assert_allclose(turned.first, compare_auroc(first, first, targets, n_boot=2).first)


def test_a_label_without_positives_has_no_value_and_the_mean_leaves_it_out() -> None:
    first, targets = scores(quality=2.0)
    targets[:, 1] = 0
    found = compare_auroc(first, -first, targets, n_boot=20)
    assert np.isnan(found.first[1])
    assert np.isnan(found.p[1])
    assert found.p_mean == 0.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0, 2.0], [1.0], [0, 1]), "must be the same"),
        (([1.0, np.nan], [1.0, 2.0], [0, 1]), "NaN"),
        (([1.0, 2.0], [1.0, 2.0], [0, 2]), "0 or 1"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_auroc(*arguments)


def test_no_redraws_are_refused() -> None:
    with pytest.raises(ValueError, match="n_boot=0"):
        compare_auroc([1.0], [1.0], [1], n_boot=0)

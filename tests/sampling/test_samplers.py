"""Samplers against exact arithmetic, textbook laws, and a counter-example to the obvious shuffle.

Every statistical test has a fixed seed, so it passes or fails for good. Its false-alarm rate, 1e-4, is the
chance that a correct sampler would have failed when the seed was chosen.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
import struct
from fractions import Fraction
from math import ceil, comb
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lightning_dp.accounting.events import GaussianEvent
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.sampling import (
    BallsInBinsSampler,
    LogicalSampler,
    PoissonSampler,
    ShuffleSampler,
    TruncatedPoissonSampler,
    following_key,
    key_from_seed,
    new_key,
)
from lightning_dp.sampling.keys import stream
from lightning_dp.sampling.samplers import _words_of_heads

FALSE_ALARM = 1e-4
BOTH = [PoissonSampler, ShuffleSampler, BallsInBinsSampler]
PASSES = [ShuffleSampler, BallsInBinsSampler]
KEY = key_from_seed(7)


def draws(sampler: LogicalSampler, steps: int) -> np.ndarray:
    """Membership, shape (steps, n)."""
    taken = np.zeros((steps, sampler.dataset_size), dtype=bool)
    for step in range(steps):
        taken[step, sampler.draw(step)] = True
    return taken


@pytest.mark.parametrize("kind", BOTH)
def test_steps_per_epoch_is_exact(kind: type[LogicalSampler]) -> None:
    wrong = []
    for n in range(1, 2001):
        sizes = range(1, n + 1) if n <= 150 else sorted({1, 2, 3, 7, 30, 64, 93, n // 3, n // 2, n - 1, n})
        wrong += [(n, b) for b in sizes if kind(n, b, KEY).steps_per_epoch != ceil(Fraction(n, b))]
    assert wrong == []


@pytest.mark.parametrize("n", [93, 99, 105, 2**53 + 1])
def test_steps_per_epoch_where_floats_lose_one(n: int) -> None:
    assert PoissonSampler(n, 1, KEY).steps_per_epoch == n
    assert PoissonSampler(n, n - 1, KEY).steps_per_epoch == 2


@pytest.mark.parametrize("kind", BOTH)
@given(n=st.integers(1, 300), data=st.data(), step=st.integers(0, 10**12), seed=st.integers(0, 50))
def test_a_draw_is_sorted_unique_and_a_pure_function(
    kind: type[LogicalSampler], n: int, data: st.DataObject, step: int, seed: int
) -> None:
    b = data.draw(st.integers(1, n))
    sampler = kind(n, b, key_from_seed(seed))
    drawn = sampler.draw(step)
    assert drawn.dtype == np.int64
    assert np.all(np.diff(drawn) > 0)
    assert len(drawn) == 0 or (drawn[0] >= 0 and drawn[-1] < n)
    sampler.draw(step + 1)  # other draws in between change nothing
    np.testing.assert_array_equal(drawn, sampler.draw(step))
    np.testing.assert_array_equal(drawn, kind(n, b, key_from_seed(seed)).draw(step))


@pytest.mark.parametrize(
    ("n", "b"),
    [(1, 1), (7, 1), (64, 1), (65, 32), (100, 33), (100, 50), (100, 51), (100, 75), (1000, 3), (257, 256)],
)
def test_poisson_includes_each_sample_at_its_rate(n: int, b: int) -> None:
    """Chi-square over the n inclusion counts of 4000 steps; covers every number of coins, 0 to 8."""
    steps, q = 4000, b / n
    counts = draws(PoissonSampler(n, b, KEY), steps).sum(axis=0)
    if q == 1.0:
        np.testing.assert_array_equal(counts, steps)
        return
    statistic = float(np.sum((counts - steps * q) ** 2) / (steps * q * (1 - q)))
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=n)
    assert low < statistic < high


@pytest.mark.parametrize(("n", "b"), [(12, 3), (12, 5), (12, 11)])
def test_poisson_pairs_are_independent(n: int, b: int) -> None:
    """No two samples go together, and none with itself a step later (Bonferroni, and chi-square)."""
    steps, q = 8000, b / n
    taken = draws(PoissonSampler(n, b, KEY), steps).astype(float)
    centred = (taken - q) / np.sqrt(q * (1 - q))
    together = centred.T @ centred / np.sqrt(steps)  # N(0, 1) off the diagonal under independence
    later = np.sum(centred[1:] * centred[:-1], axis=0) / np.sqrt(steps - 1)
    scores = np.concatenate([together[np.triu_indices(n, 1)], later])
    assert np.abs(scores).max() < stats.norm.isf(FALSE_ALARM / 2 / len(scores))
    assert stats.chi2.sf(np.sum(scores**2), df=len(scores)) > FALSE_ALARM


@pytest.mark.parametrize(("n", "b"), [(40, 4), (40, 31), (500, 100)])
def test_poisson_batch_sizes_are_binomial(n: int, b: int) -> None:
    """Chi-square of 8000 batch sizes against Binomial(n, B / n), tails pooled to 5 expected counts."""
    steps = 8000
    sizes = draws(PoissonSampler(n, b, KEY), steps).sum(axis=1)
    expected = steps * stats.binom.pmf(np.arange(n + 1), n, b / n)
    seen = np.bincount(sizes, minlength=n + 1)
    cells = np.flatnonzero(expected >= 5)
    low, high = cells[0], cells[-1]

    def pool(values: np.ndarray) -> np.ndarray:
        inner = values[low : high + 1].astype(float)
        inner[0] += values[:low].sum()
        inner[-1] += values[high + 1 :].sum()
        return inner

    assert stats.chisquare(pool(seen), pool(expected)).pvalue > FALSE_ALARM


def test_poisson_uses_every_sample_at_rate_one() -> None:
    sampler = PoissonSampler(130, 130, new_key())
    assert sampler.sample_rate == 1.0
    for step in range(50):
        np.testing.assert_array_equal(sampler.draw(step), np.arange(130))


def test_poisson_draws_empty_batches() -> None:
    sizes = [len(PoissonSampler(3, 1, KEY).draw(step)) for step in range(100)]
    assert min(sizes) == 0


@pytest.mark.parametrize("kind", BOTH)
def test_keys_and_steps_and_kinds_give_unrelated_draws(kind: type[LogicalSampler]) -> None:
    keys = [new_key(), new_key(), key_from_seed(0), key_from_seed(1), b"\0" * 15 + b"\1", b"\1" + b"\0" * 31]
    samples = {tuple(kind(400, 200, key).draw(step)) for key in keys for step in (0, 1, 2, 2**32)}
    assert len(samples) == len(keys) * 4


def test_all_of_a_long_key_counts() -> None:
    keys = [bytes(32 * [1])[:i] + bytes([2]) + bytes(31 * [1])[i:] for i in range(32)]
    assert len({tuple(PoissonSampler(400, 200, key).draw(0)) for key in keys}) == 32
    states: list[Any] = [stream(key, 1, 0).bit_generator.state["state"] for key in keys]
    assert len({state["state"] for state in states}) == len({state["inc"] for state in states}) == 32  # 128 bits each
    assert all(max(state.values()) >= 2**96 for state in states)


def test_the_generators_seed_is_what_the_hash_says_on_every_machine() -> None:
    message = struct.pack("<QQQ", 32, 1, 5) + bytes(range(32))
    digest = hashlib.blake2b(message, digest_size=32).digest()
    words = np.array(struct.unpack("<4Q", digest), dtype=np.uint64)
    found: Any = stream(bytes(range(32)), 1, 5).bit_generator.seed_seq
    assert (found.generate_state(4, np.uint64) == words).all()


def test_seeding_the_process_does_not_touch_the_draws() -> None:
    np.random.seed(1)
    first = new_key()
    np.random.seed(1)
    assert first != new_key()
    assert len(first) == 32
    assert key_from_seed(3) == key_from_seed(3) != key_from_seed(4)


def test_the_next_samplers_key_is_another_and_does_not_lead_back() -> None:
    chain = [KEY]
    for _ in range(5):
        chain.append(following_key(chain[-1]))
    assert len(set(chain)) == 6
    assert all(len(key) == 32 for key in chain)
    with pytest.raises(PrivacyConfigError, match="at least 16 bytes"):
        following_key(b"short")


@given(n=st.integers(1, 200), data=st.data(), number=st.integers(0, 5))
@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_takes_each_sample_once(kind: type[LogicalSampler], n: int, data: st.DataObject, number: int) -> None:
    b = data.draw(st.integers(1, n))
    sampler = kind(n, b, KEY)
    first = number * sampler.steps_per_epoch
    steps = [sampler.draw(first + place) for place in range(sampler.steps_per_epoch)]
    if kind is ShuffleSampler:
        assert all(len(step) <= b for step in steps)
    np.testing.assert_array_equal(np.sort(np.concatenate(steps)), np.arange(n))


@given(n=st.integers(2, 200), data=st.data(), number=st.integers(0, 5))
def test_adding_a_sample_to_a_shuffle_changes_one_step_only(n: int, data: st.DataObject, number: int) -> None:
    """What parallel composition rests on, wherever both data sets fit in the same slots."""
    b = data.draw(st.integers(1, n - 1))
    small, large = ShuffleSampler(n - 1, b, KEY), ShuffleSampler(n, b, KEY)
    assume(small.steps_per_epoch == large.steps_per_epoch)
    extra, changed = n - 1, []
    for step in range(number * large.steps_per_epoch, (number + 1) * large.steps_per_epoch):
        with_it = large.draw(step)
        np.testing.assert_array_equal(small.draw(step), with_it[with_it != extra])
        changed += [step] if extra in with_it else []
    assert len(changed) == 1


def test_shuffle_passes_are_uniform_and_differ() -> None:
    """The step of each sample over 3000 passes: chi-square against uniform over slots, false alarm 1e-4."""
    sampler = ShuffleSampler(10, 4, KEY)
    passes = 3000
    counts = np.zeros((10, 3))
    for step in range(passes * 3):
        counts[sampler.draw(step), step % 3] += 1
    statistic = np.sum((counts - passes / 3) ** 2 / (passes / 3), axis=1)
    assert statistic.max() < stats.chi2.isf(FALSE_ALARM / 10, df=2)


def test_balls_fall_uniformly_and_independently_of_each_other_and_of_the_pass() -> None:
    """Steps of pairs of samples in one pass, and of one sample in two passes: chi-square against the uniform pair."""
    n, bins, number = 5, 3, 6000
    sampler = BallsInBinsSampler(n, 2, KEY)
    assert sampler.steps_per_epoch == bins
    where = np.empty((number, n), dtype=int)
    for step in range(number * bins):
        where[step // bins, sampler.draw(step)] = step % bins
    pairs = [(where[:, i], where[:, j]) for i in range(n) for j in range(i)]
    pairs += [(where[:-1, i], where[1:, i]) for i in range(n)]
    for one, other in pairs:
        counts = np.bincount(one * bins + other, minlength=bins * bins)
        statistic = np.sum((counts - len(one) / 9) ** 2) / (len(one) / 9)
        assert statistic < stats.chi2.isf(FALSE_ALARM / len(pairs), df=8)


def test_batches_of_balls_in_bins_have_binomial_sizes() -> None:
    """Nothing evens them out, as a fixed size would: that would tell of the absent sample."""
    n, b, number = 40, 10, 4000
    sampler = BallsInBinsSampler(n, b, KEY)
    sizes = np.array([len(sampler.draw(4 * step)) for step in range(number)])  # one step of each pass
    low, high = 4, 17  # the rest together
    law = stats.binom(n, 0.25)
    expected = number * np.array([law.cdf(low), *law.pmf(np.arange(low + 1, high)), law.sf(high - 1)])
    counts = np.bincount(np.clip(sizes, low, high), minlength=high + 1)[low:]
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < stats.chi2.isf(FALSE_ALARM, df=len(expected) - 1)


@given(n=st.integers(2, 200), data=st.data(), step=st.integers(0, 50))
def test_a_sample_more_moves_no_other_between_bins(n: int, data: st.DataObject, step: int) -> None:
    b = data.draw(st.integers(1, n - 1))
    small, large = BallsInBinsSampler(n - 1, b, KEY), BallsInBinsSampler(n, b, KEY)
    assume(small.steps_per_epoch == large.steps_per_epoch)
    with_it = large.draw(step)
    np.testing.assert_array_equal(small.draw(step), with_it[with_it != n - 1])


def test_poisson_charges_every_step() -> None:
    sampler = PoissonSampler(10, 3, KEY)
    assert all(sampler.charges(step, step - 1 if step else None) for step in range(12))
    assert sampler.compositions(12) == 12
    assert sampler.event(1.5) == GaussianEvent(noise_multiplier=1.5, sample_rate=0.3, sampling="poisson")


@pytest.mark.parametrize("kind", PASSES)
def test_passes_are_charged_once(kind: type[LogicalSampler]) -> None:
    sampler = kind(10, 3, KEY)  # 4 steps a pass
    charged = [sampler.charges(step, step - 1 if step else None) for step in range(10)]
    assert charged == [True, False, False, False, True, False, False, False, True, False]
    assert [sampler.compositions(steps) for steps in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_a_shuffled_pass_claims_no_amplification_and_balls_in_bins_their_number() -> None:
    assert ShuffleSampler(10, 3, KEY).event(1.5) == GaussianEvent(1.5, 1.0, "shuffle")
    assert BallsInBinsSampler(10, 3, KEY).event(1.5) == GaussianEvent(1.5, 1.0, "balls_in_bins", bins=4)


@given(n=st.integers(1, 60), data=st.data(), start=st.integers(0, 100), steps=st.integers(0, 100))
@pytest.mark.parametrize("kind", BOTH)
def test_the_plan_agrees_with_the_charges(
    kind: type[LogicalSampler], n: int, data: st.DataObject, start: int, steps: int
) -> None:
    """A fresh key at `start`, as after a resume in mid-pass: no step may be free before one was charged."""
    sampler = kind(n, data.draw(st.integers(1, n)), KEY)
    previous, charged = None, 0
    for step in range(start, start + steps):
        charged += sampler.charges(step, previous)
        previous = step
    assert charged == sampler.compositions(steps, start)


def test_a_resumed_shuffle_may_repeat_a_sample_and_is_charged_for_it() -> None:
    before, after = (ShuffleSampler(12, 3, key_from_seed(seed)) for seed in (0, 1))
    seen = np.concatenate([before.draw(0), before.draw(1), after.draw(2), after.draw(3)])
    assert len(np.unique(seen)) < len(seen)
    assert after.charges(2, None)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("n", "b", "words"),
    [
        (10, 11, "at most 10"),
        (10, 0, "at least 1"),
        (0, 1, "at least 1"),
        (10, 2.5, "whole"),
        (True, 1, "whole"),
    ],
)
def test_impossible_sizes_are_refused(kind: type[LogicalSampler], n: int, b: int, words: str) -> None:
    with pytest.raises(PrivacyConfigError, match=words):
        kind(n, b, KEY)


@pytest.mark.parametrize("kind", BOTH)
def test_short_keys_and_negative_steps_are_refused(kind: type[LogicalSampler]) -> None:
    with pytest.raises(PrivacyConfigError, match="new_key"):
        kind(10, 2, b"123456789012345")
    with pytest.raises(PrivacyConfigError, match="step"):
        kind(10, 2, KEY).draw(-1)


@pytest.mark.parametrize("kind", BOTH)
def test_the_key_stays_in_memory(kind: type[LogicalSampler]) -> None:
    sampler = kind(10, 2, KEY)
    with pytest.raises(PrivacyError, match="key would reach a file"):
        pickle.dumps(sampler)
    assert copy.deepcopy([sampler])[0] is sampler
    assert copy.copy(sampler) is sampler
    assert repr(sampler) == f"{kind.__name__}(dataset_size=10, expected_batch_size=2)"


# --- cut draws --------------------------------------------------------------------------------------------------------
@given(n=st.integers(1, 200), data=st.data(), step=st.integers(0, 10**9))
def test_a_cut_draw_is_part_of_the_poisson_draw_and_never_too_large(n: int, data: st.DataObject, step: int) -> None:
    b = data.draw(st.integers(1, n))
    most = data.draw(st.integers(b, n + 5))
    sampler, whole = TruncatedPoissonSampler(n, b, KEY, most), PoissonSampler(n, b, KEY).draw(step)
    cut = sampler.draw(step)
    assert len(cut) == min(len(whole), most)
    assert np.isin(cut, whole).all()
    assert np.all(np.diff(cut) > 0)
    np.testing.assert_array_equal(cut, sampler.draw(step))
    assert (sampler.sample_rate, sampler.max_batch_size) == (b / n, most)
    assert sampler.compositions(7, 3) == 7
    assert sampler.charges(step, None)


def test_the_units_that_a_cut_leaves_are_chosen_uniformly() -> None:
    """Chi-square over who is kept in 6000 steps of which half are cut; and who is kept together."""
    sampler, steps = TruncatedPoissonSampler(8, 4, KEY, 4), 6000
    taken = draws(sampler, steps)
    cut = taken[[len(PoissonSampler(8, 4, KEY).draw(step)) > 4 for step in range(steps)]].astype(float)
    assert len(cut) > 1500
    assert (cut.sum(axis=1) == 4).all()
    # A uniform subset of 4 of 8: chance 1/2 each, covariance -1/28; the projection off the ones has variance 2/7.
    scores = (cut.sum(axis=0) - len(cut) / 2) / np.sqrt(len(cut) * 2 / 7)
    assert stats.chi2.sf(np.sum(scores**2), df=7) > FALSE_ALARM
    pairs = (cut.T @ cut)[np.triu_indices(8, 1)]
    assert np.abs(pairs / len(cut) - 3 / 14).max() < stats.norm.isf(FALSE_ALARM / 56) * np.sqrt(3 / 14 / len(cut))


@pytest.mark.parametrize(
    ("n", "b", "most"), [(10, 3, 5), (10, 3, 3), (1000, 100, 140), (60, 60, 60), (10**6, 500, 700)]
)
def test_the_tail_is_the_binomial_one(n: int, b: int, most: int) -> None:
    tail = TruncatedPoissonSampler(n, b, KEY, most).tail
    exact = float(stats.binom.sf(most - 1, n, b / n))
    assert exact <= tail <= exact * (1 + 1e-5) + 1e-290
    if n <= 10:
        rate = Fraction(b, n)
        terms = [comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(most, n + 1)]
        assert tail == pytest.approx(float(sum(terms)), rel=1e-5)


def test_a_cap_that_nothing_reaches_has_no_tail() -> None:
    assert TruncatedPoissonSampler(10, 3, KEY, 11).tail == 0.0
    assert TruncatedPoissonSampler(10, 10, KEY, 11).tail == 0.0
    assert TruncatedPoissonSampler(10, 10, KEY, 10).tail == 1.0  # one more unit, and somebody is always cut


def test_the_event_of_cut_draws_carries_the_tail() -> None:
    sampler = TruncatedPoissonSampler(10, 3, KEY, 5)
    assert sampler.event(1.5) == GaussianEvent(1.5, 0.3, "truncated_poisson", sampler.tail)
    assert sampler.tail > 0.1


@pytest.mark.parametrize("most", [2, 0, 2.5, True])
def test_a_cap_below_the_expected_batch_is_refused(most: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="max_batch_size"):
        TruncatedPoissonSampler(10, 3, KEY, most)


@pytest.mark.parametrize("coins, length", [(0, 3), (1, 3), (6, 400), (5, 1 << 13), (3, 1 << 15)])
def test_coins_are_tossed_one_after_the_other_however_many_at_once(coins: int, length: int) -> None:
    bits, truth = np.random.PCG64DXSM(7), np.random.PCG64DXSM(7)
    words = np.full(length, ~np.uint64(0))
    for _ in range(coins):
        words &= truth.random_raw(length)
    assert (_words_of_heads(bits, coins, length) == words).all()

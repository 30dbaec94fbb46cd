"""Samplers of logical batches: which samples take part in step ``t``, and what that costs.

A sampler carries its own accounting event, so that what is drawn and what is accounted cannot disagree.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from lightning_dp.accounting.events import GaussianEvent, Sampling
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.sampling.keys import check_key, stream

__all__ = ("BallsInBinsSampler", "LogicalSampler", "PoissonSampler", "ShuffleSampler", "TruncatedPoissonSampler")

_POISSON_DOMAIN = 1
_SHUFFLE_DOMAIN = 2
_CUT_DOMAIN = 4
_BINS_DOMAIN = 5
_WORD = 64
_BLOCK = 1 << 14  # words


def _whole(name: str, value: int, least: int) -> int:
    """Return ``value`` as a Python int.

    Raises:
        PrivacyConfigError: if it is not a whole number, or below ``least``.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool) or whole < least:
        raise PrivacyConfigError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
    return whole


class LogicalSampler(ABC):
    """Base of the samplers: a pure function from (key, step) to the global indices of one logical batch.

    ``dataset_size`` n and ``expected_batch_size`` B are public constants of the mechanism. The number of
    steps per epoch is ceil(n / B) in integer arithmetic: rounding through floats loses a step for hundreds of
    values of n.

    Args:
        dataset_size: n, samples in the training set over all ranks, >= 1.
        expected_batch_size: B, the expected size of a logical batch over all ranks together, 1 <= B <= n.
        key: the secret (see `lightning_dp.sampling.keys`), the same on every rank.

    Raises:
        PrivacyConfigError: for n < 1, B < 1, B > n, or a key below 128 bits.
    """

    sampling: ClassVar[Sampling]

    def __init__(self, dataset_size: int, expected_batch_size: int, key: bytes) -> None:
        self._dataset_size = _whole("dataset_size", dataset_size, 1)
        self._expected_batch_size = _whole("expected_batch_size", expected_batch_size, 1)
        if self._expected_batch_size > self._dataset_size:
            raise PrivacyConfigError(
                f"`expected_batch_size` is {expected_batch_size}, but there are only {dataset_size} samples: "
                f"a sampling rate cannot exceed 1. Use a batch size of at most {dataset_size} (every sample "
                "in every step)."
            )
        self._key = check_key(key)

    @property
    def dataset_size(self) -> int:
        """Number of samples n."""
        return self._dataset_size

    @property
    def expected_batch_size(self) -> int:
        """Expected logical batch size B, over all ranks together."""
        return self._expected_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Logical steps in an epoch: ceil(n / B)."""
        return -(-self._dataset_size // self._expected_batch_size)

    @property
    @abstractmethod
    def sample_rate(self) -> float:
        """The rate the accountant may use, in (0, 1]."""

    @abstractmethod
    def draw(self, step: int) -> NDArray[np.int64]:
        """Return the indices of logical step ``step``: a pure function of (key, step).

        Args:
            step: 0-based, over the whole run.

        Returns:
            Shape (k,), strictly increasing, each in [0, n); k may be 0.
        """

    @abstractmethod
    def charges(self, step: int, previous: int | None) -> bool:
        """Return whether taking ``step`` costs one more composition of `event`.

        Args:
            step: the step about to be taken.
            previous: the last step taken *from this sampler object* (that is, under this key); None if none
                was.
        """

    @abstractmethod
    def compositions(self, steps: int, start: int = 0) -> int:
        """Return how many times `event` the steps ``start, ..., start + steps - 1`` cost, under one key."""

    def event(self, noise_multiplier: float) -> GaussianEvent:
        """Return one composition as accountants see it; noise_multiplier = noise std / clipping norm C."""
        return GaussianEvent(noise_multiplier=noise_multiplier, sample_rate=self.sample_rate, sampling=self.sampling)

    def __repr__(self) -> str:
        # The key stays out: representations end up in logs.
        sizes = f"dataset_size={self.dataset_size}, expected_batch_size={self.expected_batch_size}"
        return f"{type(self).__name__}({sizes})"

    def __copy__(self) -> LogicalSampler:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LogicalSampler:
        return self  # a pure function of constants: sharing it is safe, and the key is not spread

    def __reduce__(self) -> NoReturn:
        raise PrivacyError(
            f"A {type(self).__name__} cannot be pickled: its key would reach a file, and whoever holds the "
            "key knows which samples every step used. Save the step position, and build a sampler with "
            "`new_key()` on resume."
        )


class PoissonSampler(LogicalSampler):
    """Poisson sampling: in every step, every sample takes part independently with probability exactly B / n.

    Guarantee: under add-or-remove-one, each step is the Poisson-subsampled mechanism of rate q = B / n that
    accountants for DP-SGD analyse (Abadi et al. 2016, arXiv:1607.00133, section 3.1; Mironov et al. 2019,
    arXiv:1908.10530), provided that the update is the *sum* of clipped contributions, noised, and divided by
    a constant. The size of a batch is then random, 0 included, and is itself private. At B = n every step
    uses every sample (q = 1, no amplification).

    See `LogicalSampler` for the arguments.
    """

    sampling: ClassVar[Sampling] = "poisson"

    @property
    def sample_rate(self) -> float:
        """q = B / n."""
        return self._expected_batch_size / self._dataset_size

    def draw(self, step: int) -> NDArray[np.int64]:
        """Return the samples that step ``step`` includes; see `LogicalSampler.draw`.

        Work: n * log2(n / B) random bits, one pass over n bits, and the batch; about 1 ms for n = 10^6.
        """
        n, b = self._dataset_size, self._expected_batch_size
        rng = stream(self._key, _POISSON_DOMAIN, _whole("step", step, 0))
        # The law must be Poisson sampling itself, not nearly: the obvious way (a binomial size, then a
        # uniform subset of that size) has the right law on paper, but numpy cuts off the binomial's upper
        # tail when its mean is below 30, up to 3e-13 of mass a step that no accountant sees, and its floats
        # depend on the math library, so that ranks on unlike machines could disagree on the draw. Integers
        # only, therefore: a sample stays if it wins j fair coins, j the largest with 2^-j >= B/n (64 samples
        # a word), and then a lottery at exactly B 2^j / n.
        coins = (n // b).bit_length() - 1
        words = _words_of_heads(rng.bit_generator, coins, -(-n // _WORD))
        heads = np.unpackbits(words.view(np.uint8), count=n, bitorder="little").view(np.bool_)
        winners = np.flatnonzero(heads)
        kept: NDArray[np.int64] = winners[rng.integers(0, n, size=len(winners)) < (b << coins)]
        return kept.astype(np.int64, copy=False)

    def charges(self, step: int, previous: int | None) -> bool:
        """Return True: every step is a composition, an empty one included (that it was empty is private)."""
        return True

    def compositions(self, steps: int, start: int = 0) -> int:
        """Return ``steps``."""
        return _whole("steps", steps, 0)


def _words_of_heads(bits: np.random.BitGenerator, coins: int, length: int) -> NDArray[np.uint64]:
    """Words whose bits are 1 where all of ``coins`` fair coins fell heads; the same ones for every block size."""
    words = np.full(length, ~np.uint64(0))
    at_once = max(1, _BLOCK // length)  # a call for each coin costs more than its words where these are few
    for first in range(0, coins, at_once):
        tosses = bits.random_raw(min(at_once, coins - first) * length).reshape(-1, length)
        words &= np.bitwise_and.reduce(tosses)
    return words


class TruncatedPoissonSampler(PoissonSampler):
    """Poisson sampling with a hard cap: a draw of more than M units is cut to M of them, chosen uniformly.

    A step then never costs more than M units of memory and time, whatever is drawn.

    Guarantee: if T steps of `PoissonSampler` are (eps, delta)-private under add-or-remove-one, T steps of this one are
    (eps, delta + T * tail)-private, with ``tail`` = P[Binomial(n, q) >= M], q = B / n. The event carries the tail, and
    accountants add it. Proof: let D' be D and one more unit x. The draws of the common units, at most n of them, are
    independent of x and of everything released, and have the same law under both data sets. Hockey-stick divergences
    are jointly convex, so the divergence between the runs is at most its mean over these draws with the draws held
    fixed. Where no step has M or more common units, x or no x, nothing is cut: each step is a Gaussian mechanism that x
    joins with chance q, whose adaptive composition is what `PoissonSampler` is accounted by, in both directions. Where
    some step has, the divergence is at most 1; by the union bound that has a chance of at most T * tail.

    This is less than the T (1 + e^eps) P[Binomial(n, q) > M] of Chua et al. 2024 (arXiv:2411.04205), who compare each
    run with its uncut twin; here the two runs are compared under one and the same draw of the common units. A cap so low
    that draws are often cut would need the finer analysis of Ganesh 2025 (arXiv:2508.15089), and is refused when its
    tail uses delta up. A tail of delta / (100 T) costs nothing that shows in eps; M = B + 8 sqrt(B) + 10 is usually
    there.

    Args:
        dataset_size: n; see `LogicalSampler`.
        expected_batch_size: B; see `LogicalSampler`.
        key: see `LogicalSampler`.
        max_batch_size: M, public, over all ranks together, at least B.

    Raises:
        PrivacyConfigError: as `LogicalSampler`, and for M < B.
    """

    sampling = "truncated_poisson"

    def __init__(self, dataset_size: int, expected_batch_size: int, key: bytes, max_batch_size: int) -> None:
        super().__init__(dataset_size, expected_batch_size, key)
        self._max_batch_size = _whole("max_batch_size", max_batch_size, self._expected_batch_size)

    @property
    def max_batch_size(self) -> int:
        """The most units M that a draw ever holds."""
        return self._max_batch_size

    @property
    def tail(self) -> float:
        """An upper bound on P[Binomial(n, q) >= M]: the chance per step that the cut could matter; 0 for M > n."""
        if self._max_batch_size > self._dataset_size:
            return 0.0
        chance = betainc(self._max_batch_size, self._dataset_size - self._max_batch_size + 1, self.sample_rate)
        # Rounding of the incomplete beta function, and its underflow.
        return min(1.0, float(chance) * (1.0 + 1e-6) + 1e-300)

    def draw(self, step: int) -> NDArray[np.int64]:
        """Return the Poisson draw of step ``step``, or M of its units if it has more; see `LogicalSampler.draw`."""
        drawn = super().draw(step)
        if len(drawn) <= self._max_batch_size:
            return drawn
        return np.sort(stream(self._key, _CUT_DOMAIN, step).permutation(drawn)[: self._max_batch_size])

    def event(self, noise_multiplier: float) -> GaussianEvent:
        """Return one composition as accountants see it, its tail included."""
        return replace(super().event(noise_multiplier), tail=self.tail)


class _PassSampler(LogicalSampler):
    """Base of samplers whose event is a whole pass of S = ceil(n / B) steps, in which every sample takes part once."""

    def __init__(self, dataset_size: int, expected_batch_size: int, key: bytes) -> None:
        super().__init__(dataset_size, expected_batch_size, key)
        self._latest: tuple[int, Any] | None = None  # a cache: the pass drawn last

    @property
    def sample_rate(self) -> float:
        """1.0: the event is a pass, in which everybody takes part."""
        return 1.0

    def charges(self, step: int, previous: int | None) -> bool:
        """Return whether ``step`` opens a pass: ``previous`` lies in another one, or there was none."""
        return previous is None or step // self.steps_per_epoch != previous // self.steps_per_epoch

    def compositions(self, steps: int, start: int = 0) -> int:
        """Return the number of passes that the steps touch: from a pass boundary, ceil(steps / S)."""
        steps, start = _whole("steps", steps, 0), _whole("start", start, 0)
        if steps == 0:
            return 0
        return (start + steps - 1) // self.steps_per_epoch - start // self.steps_per_epoch + 1


class ShuffleSampler(_PassSampler):
    """Shuffled passes, sound under add-or-remove-one, accounted without amplification.

    A pass has S = ceil(n / B) steps of B *slots*. For each pass the S * B slots are permuted and handed to
    the samples 0, ..., n - 1 in turn; the slots left over stay empty and contribute nothing. So a step has
    *at most* B samples, and the empty slots are scattered over the pass rather than gathered in a short last
    batch.

    Why slots: the permutation depends on (key, pass, S * B) alone, and S and B are public constants of the
    run. Adding a sample to the data set fills one empty slot (removing it empties one), and every other
    sample stays in the step where it was. Permuting the n samples themselves would let one sample more or
    less move all others between steps, and then every step of the pass would change.

    Guarantee: of the S steps of a pass, exactly one depends on a given sample, whatever the permutation. By
    (adaptive) parallel composition, a whole pass with noise of standard deviation noise_multiplier * C in
    each step costs *one* Gaussian mechanism at sample rate 1, for any two data sets that differ in one sample
    and both fit in S * B slots. It does not depend on the permutation being secret, and claims nothing for
    it: accounting shuffled batches as if they were Poisson batches understates eps (Chua et al. 2024,
    arXiv:2403.17673).

    One key covers whole passes. After a resume in the middle of a pass a new permutation is in force, under
    which a sample may take part again; that is why `charges` asks for the last step taken *under this key*,
    and charges the pass once more when there was none.

    See `LogicalSampler` for the arguments.
    """

    sampling = "shuffle"

    def draw(self, step: int) -> NDArray[np.int64]:
        """Return the samples in the B slots of step ``step``; see `LogicalSampler.draw`."""
        number, place = divmod(_whole("step", step, 0), self.steps_per_epoch)
        if self._latest is None or self._latest[0] != number:
            slots = self.steps_per_epoch * self._expected_batch_size
            self._latest = number, stream(self._key, _SHUFFLE_DOMAIN, number).permutation(slots)
        first = place * self._expected_batch_size
        occupants = self._latest[1][first : first + self._expected_batch_size]
        return np.sort(occupants[occupants < self._dataset_size])


class BallsInBinsSampler(_PassSampler):
    """Balls-in-bins sampling: in each pass of S = ceil(n / B) steps, every sample takes part in one step, drawn uniformly.

    As in a shuffled pass, all samples are seen once; as in Poisson sampling, samples are drawn independently of each
    other, and sizes of batches are random (n / S samples on average, at most B; 0 included) and private.

    Guarantee: under add-or-remove-one, a pass with noise of standard deviation noise_multiplier * C in each step is
    dominated by one look at N(e_i, s^2 I) with i uniform in 1, ..., S, against N(0, s^2 I), s = noise_multiplier (Chua
    et al. 2024, arXiv:2412.16802). Proof: let D' be D and one more sample x. The steps of the common samples are
    independent of x and have the same law under both data sets; divergences are jointly convex, so it is enough to bound
    them for each way in which the common samples fell. Then step t is, given what was released before, Gaussian noise
    round a known sum, or round that sum and a known vector of norm r C, r <= 1, if x fell into t. An observer of z, drawn
    from either of the two laws above, makes it from z_t: scale by r, add noise of variance (1 - r^2) s^2, and turn the
    axis onto the vector, with fresh noise in all other directions. Passes draw anew, so they compose; the event is one
    pass, which the accountant ``"pld"`` amplifies (:mod:`lightning_dp.accounting.allocation`) and others count as one
    Gaussian step at rate 1.

    A pass is charged as a whole by its first step. What ends or is resumed within one has released part of it, which costs
    no more than all of it; under a new key it is charged again (see `ShuffleSampler`). Composition needs passes that are
    drawn independently, so no two samplers of a run may have one key (`following_key`). S is a constant of the mechanism, as
    n and B are: eps compares data sets that are trained on with one S.

    See `LogicalSampler` for the arguments.
    """

    sampling = "balls_in_bins"

    def draw(self, step: int) -> NDArray[np.int64]:
        """Return the samples that fell into step ``step``; see `LogicalSampler.draw`."""
        number, place = divmod(_whole("step", step, 0), self.steps_per_epoch)
        if self._latest is None or self._latest[0] != number:
            rng = stream(self._key, _BINS_DOMAIN, number)
            bins = rng.integers(0, self.steps_per_epoch, size=self._dataset_size)
            # Sorted by bin and, within one, by sample; and where each bin begins.
            starts = np.searchsorted(np.sort(bins), np.arange(self.steps_per_epoch + 1))
            self._latest = number, (np.argsort(bins, kind="stable"), starts)
        order, starts = self._latest[1]
        drawn: NDArray[np.int64] = order[starts[place] : starts[place + 1]].astype(np.int64)
        return drawn

    def event(self, noise_multiplier: float) -> GaussianEvent:
        """Return one pass as accountants see it."""
        return replace(super().event(noise_multiplier), bins=self.steps_per_epoch)

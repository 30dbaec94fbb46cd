"""What a private mechanism does to the data: a subsampled Gaussian step, a noisy release, a randomised label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_dp.errors import PrivacyConfigError

__all__ = ("IN_PASSES", "RELATION", "Event", "GaussianEvent", "RandomizedResponseEvent", "Relation", "Sampling")

Sampling = Literal["poisson", "truncated_poisson", "balls_in_bins", "shuffle"]

#: Samplings of which an event is a whole pass, and not a step.
IN_PASSES: tuple[Sampling, ...] = ("balls_in_bins", "shuffle")

#: What neighbouring data sets are: they differ by one unit that only one of them has, or by what one unit is.
Relation = Literal["add_or_remove_one", "replace_one"]

#: The neighbouring relation of every training mechanism of this package: data sets that differ by one added or
#: removed unit.
RELATION: Relation = "add_or_remove_one"


@dataclass(frozen=True)
class GaussianEvent:
    """One noisy sum over a random batch.

    The mechanism adds Gaussian noise of standard deviation ``noise_multiplier * sensitivity`` to a sum in
    which one unit contributes at most ``sensitivity`` (L2), each unit taking part independently with chance
    ``sample_rate``. With ``bins``, it is a whole pass of as many such sums, in one of which each unit takes part.

    Args:
        noise_multiplier: Noise standard deviation over L2 sensitivity; 0 means no privacy at all (eps is
            infinite).
        sample_rate: Poisson rate q in (0, 1]; 1 means that every unit takes part, hence no amplification.
        sampling: How batches are drawn. A shuffled pass visits every unit and is accounted without
            amplification, so ``"shuffle"`` needs ``sample_rate=1``; so does ``"none"``, where every unit has an
            output of its own.
        tail: Chance in [0, 1], per step, that the above fails to describe the step, however badly: that a draw
            was cut (``"truncated_poisson"`` only). Accountants add it to delta, once for each step.
        bins: Steps of a pass in which every unit takes part once, in a step drawn uniformly and independently of all
            others (``"balls_in_bins"`` only). The pass is the event. What knows nothing of bins may read it as one
            Gaussian sum at ``sample_rate=1``, which bounds it: one step depends on the unit, whichever it is.
        relation: The neighbouring relation under which ``sensitivity`` holds. Under ``"replace_one"`` two
            contributions of norm C lie up to 2C apart. Amplification is accounted for ``"add_or_remove_one"``
            only.

    Raises:
        PrivacyConfigError: If a field is not finite or out of range, if amplification is claimed for
            shuffling or for replacing, a tail without truncation, or bins without balls.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    sampling: Sampling | Literal["none"] = "poisson"
    tail: float = 0.0
    relation: Relation = RELATION
    bins: int = 1

    def __post_init__(self) -> None:
        sigma = _as_float("noise_multiplier", self.noise_multiplier)
        rate = _as_float("sample_rate", self.sample_rate)
        # NaN compares false with everything: test for what is allowed, never for what is not.
        if not (math.isfinite(sigma) and sigma >= 0.0):
            raise PrivacyConfigError(f"noise_multiplier must be finite and >= 0, got {sigma}: use 0 for no privacy.")
        if not 0.0 < rate <= 1.0:
            raise PrivacyConfigError(f"sample_rate must lie in (0, 1], got {rate}: it is expected batch size / n.")
        if self.sampling not in (*get_args(Sampling), "none"):
            raise PrivacyConfigError(f"sampling must be one of {get_args(Sampling)}, got {self.sampling!r}.")
        if self.sampling == "none" and rate != 1.0:
            raise PrivacyConfigError(f"without sampling every unit takes part: sample_rate must be 1, got {rate}.")
        _check_relation(self.relation)
        if self.relation == "replace_one" and self.sampling != "none":
            raise PrivacyConfigError(
                f"sampling={self.sampling!r} is accounted for relation='add_or_remove_one' only: the profiles of a sampled "
                "step are other ones when a unit is replaced. Use sampling='none' for a release without sampling."
            )
        whole = isinstance(self.bins, int) and not isinstance(self.bins, bool)
        if not (whole and self.bins >= 1) or (self.bins > 1 and self.sampling != "balls_in_bins"):
            raise PrivacyConfigError(
                f"bins must be a whole number >= 1, and 1 unless sampling='balls_in_bins', got {self.bins!r}: it is the number "
                "of steps in a pass."
            )
        if self.sampling == "balls_in_bins" and rate != 1.0:
            raise PrivacyConfigError(
                f"sampling='balls_in_bins' is accounted by passes, in which every unit takes part: sample_rate must be 1, got "
                f"{rate}. What amplifies is bins, the number of steps in a pass."
            )
        if self.sampling == "shuffle" and rate != 1.0:
            # Amplification by Poisson sampling does not hold for shuffled batches (arXiv 2403.17673).
            raise PrivacyConfigError(
                f"sampling='shuffle' is accounted without amplification and needs sample_rate=1, got {rate}: "
                "use sampling='balls_in_bins' or 'poisson' for amplified accounting."
            )
        tail = _as_float("tail", self.tail)
        if not 0.0 <= tail <= 1.0 or (tail > 0.0 and self.sampling != "truncated_poisson"):
            raise PrivacyConfigError(
                f"tail must lie in [0, 1], and be 0 unless sampling='truncated_poisson', got {tail}: it is the chance that "
                "a batch had to be cut."
            )
        object.__setattr__(self, "tail", tail)
        object.__setattr__(self, "noise_multiplier", sigma)
        object.__setattr__(self, "sample_rate", rate)


@dataclass(frozen=True)
class RandomizedResponseEvent:
    """One label of each unit, kept with chance e^eps / (e^eps + K - 1) and else replaced by another of K classes.

    Pure eps-differential privacy when a label is replaced, and no less when it is compared with a uniform label, the
    one of a unit that is not there (by convexity: the uniform label is a mixture of the answers of all classes).

    Args:
        eps: The eps of one answer, >= 0; finite.
        num_classes: K >= 2, public.
        relation: As in :class:`GaussianEvent`.

    Raises:
        PrivacyConfigError: If a field is out of range.

    Source: Warner 1965; Kairouz, Oh and Viswanath 2014 (arXiv 1407.1338), K-ary randomised response.
    """

    eps: float
    num_classes: int
    relation: Relation = RELATION

    def __post_init__(self) -> None:
        eps = _as_float("eps", self.eps)
        if not (math.isfinite(eps) and eps >= 0.0):
            raise PrivacyConfigError(f"the eps of randomised labels must be finite and >= 0, got {eps}.")
        whole = isinstance(self.num_classes, int) and not isinstance(self.num_classes, bool)
        if not (whole and self.num_classes >= 2):
            raise PrivacyConfigError(f"num_classes must be a whole number of at least 2, got {self.num_classes!r}.")
        _check_relation(self.relation)
        object.__setattr__(self, "eps", eps)

    @property
    def keep(self) -> float:
        """Chance that the label stays what it is."""
        return 1.0 / (1.0 + (self.num_classes - 1) * math.exp(-self.eps))

    def losses(self) -> tuple[tuple[float, float], ...]:
        """Privacy losses when one label is replaced by another, and their chances: eps, 0 and -eps.

        The same in both directions, by symmetry.
        """
        other = (1.0 - self.keep) / (self.num_classes - 1)
        both = ((self.eps, self.keep), (-self.eps, other))
        return both if self.num_classes == 2 else (*both, (0.0, (self.num_classes - 2) * other))


Event = GaussianEvent | RandomizedResponseEvent
"""What a ledger counts."""


def _check_relation(relation: object) -> None:
    if relation not in get_args(Relation):
        raise PrivacyConfigError(f"relation must be one of {get_args(Relation)}, got {relation!r}.")


def _as_float(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise PrivacyConfigError(f"{name} must be a number, got {value!r}.") from error

"""What NeuralDPStrategy may be asked for."""

from __future__ import annotations

from lightning_dp.accounting import RandomizedResponseEvent, Relation
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.strategies.neural.release import DTYPES

__all__ = ("answer_of", "check_sizes", "labels_in_words")


def check_sizes(bound: float, releases: int, batch_size: int | None, stored_as: str) -> None:
    """Refuses numbers out of range."""
    number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    if not (number and 0 < bound < float("inf")):
        raise PrivacyConfigError(f"max_activation_norm={bound!r} must be a positive, finite number: it is the bound C.")
    for name, value in (("releases", releases), ("release_batch_size", 1 if batch_size is None else batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PrivacyConfigError(f"{name}={value!r} must be a whole number >= 1.")
    if stored_as not in DTYPES:
        raise PrivacyConfigError(f"stored_as={stored_as!r} is unknown; choose one of {tuple(DTYPES)}.")


def answer_of(
    labels: str | None, label_eps: float | None, num_classes: int | None, relation: Relation, label_keys: int
) -> RandomizedResponseEvent | None:
    """How labels are randomised; ``None`` where they are not. Refuses what leaves their protection unclear."""
    if labels not in (None, "public", "randomized"):
        raise PrivacyConfigError(
            f"labels={labels!r} is unknown: 'public' if they need no protection, 'randomized' to protect them, or None to use "
            "them in the clear, outside the guarantee."
        )
    if labels != "randomized":
        if label_eps is not None:
            raise PrivacyConfigError("label_eps is for labels='randomized'; as it stands no label would be randomised.")
        return None
    if label_eps is None or num_classes is None:
        raise PrivacyConfigError(
            "labels='randomized' needs label_eps, the part of eps that goes to labels, and num_classes, which must be known "
            "without looking at the data."
        )
    if label_keys != 1:
        raise PrivacyConfigError(
            f"labels='randomized' is one answer for each sample, and there are {label_keys} label_keys. Give one, or randomise "
            "several of them as one label."
        )
    return RandomizedResponseEvent(label_eps, num_classes, relation)


def labels_in_words(labels: str | None, answer: RandomizedResponseEvent | None) -> str:
    """What a report says about the labels."""
    if answer is not None:
        return f"randomised, eps {answer.eps:g} of {answer.num_classes} classes, part of eps"
    return "public" if labels == "public" else "IN THE CLEAR, outside the guarantee"

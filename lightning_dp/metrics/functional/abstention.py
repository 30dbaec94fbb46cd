"""When an ensemble answers, when it abstains, and which models count as equally good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betainc
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, rate

__all__ = ("Abstention", "answer", "ensemble_ambiguity", "rashomon_set", "rashomon_set_by_test")


@dataclass(frozen=True)
class Abstention:
    """A rule by which an ensemble answers with its most frequent class or abstains. A tie for the first place abstains.

    Args:
        kind: "consensus" answers where at least the share ``level`` of the members agree, "unanimity" where all do,
            "binomial" where the first class beats the second at significance ``level``.
        level: the share in (0, 1], or the significance level in (0, 1); unanimity has none.

    Raises:
        ValueError: a level outside its range.
    """

    kind: Literal["consensus", "unanimity", "binomial"]
    level: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("consensus", "unanimity", "binomial"):
            raise ValueError(f'an abstention rule is "consensus", "unanimity" or "binomial", got {self.kind!r}.')
        if not 0.0 < self.level <= 1.0 or (self.kind == "binomial" and self.level == 1.0):
            raise ValueError(f"{self.kind} needs a level between 0 and 1, got {self.level}.")

    @classmethod
    def consensus(cls, share: float) -> Abstention:
        """Answer where at least this share of the members agree."""
        return cls("consensus", share)

    @classmethod
    def unanimity(cls) -> Abstention:
        """Answer where all members agree."""
        return cls("unanimity")

    @classmethod
    def binomial(cls, alpha: float = 0.05) -> Abstention:
        """Answer where a two-sided binomial test of the first two counts has p <= alpha.

        The selective ensembles of Black et al. 2022 (arXiv 2111.08230). With fewer than 6 members no vote reaches 0.05.
        """
        return cls("binomial", alpha)

    @property
    def name(self) -> str:
        """Short name for tables and loggers."""
        return self.kind if self.kind == "unanimity" else f"{self.kind}_{self.level:g}"


def answer(votes: Tensor, rule: Abstention) -> Tensor:
    """The ensemble's answers.

    Args:
        votes: (n, classes) how many members chose each class; rows have one sum, the number of members.
        rule: when to answer.

    Returns:
        (n,) int64: the most frequent class, or -1 where the ensemble abstains.
    """
    if votes.ndim != 2 or votes.shape[1] < 2:
        raise ValueError(f"votes must have the shape (n, classes) with two classes or more, got {tuple(votes.shape)}.")
    first, second = votes.topk(2, dim=1).values.unbind(1)
    members = votes.sum(1)
    if rule.kind == "binomial":
        a, b = first.cpu().double().numpy(), second.cpu().double().numpy()
        enough = torch.from_numpy(np.asarray(2.0 * _fair_coin(a, b) <= rule.level)).to(votes.device)
    elif rule.kind == "unanimity":
        enough = first == members
    else:
        enough = first >= rule.level * members - 1e-9  # 0.8 * 5 members is 4, whatever its rounding
    return torch.where(enough & (first > second), votes.argmax(1), -1)


def ensemble_ambiguity(answers: Tensor, confidence: float = 0.95) -> Estimate:
    """Share of samples on which ensembles that all answer do not all answer the same.

    Args:
        answers: (ensembles, n) as `answer` gives them; the ensembles have no member in common.
        confidence: level of the interval.

    Returns:
        The share among the samples on which none abstains; NaN if there is no such sample.
    """
    kept = answers[:, (answers >= 0).all(0)]
    return rate(float((kept != kept[:1]).any(0).sum()), kept.shape[1], confidence, "every sample has an abstention")


def rashomon_set(risks: Sequence[float], tolerance: float, baseline: int | None = None) -> list[int]:
    """Models whose validation risk is at most the baseline's plus ``tolerance``; the baseline comes first.

    (The eps-level set of Marx et al. 2020, arXiv 1909.06677.) Choose the set on other samples than those on which
    multiplicity is then measured, and give its size with the measures: ambiguity and discrepancy can only grow with it.

    Args:
        risks: risk of each model.
        tolerance: how much worse still counts as equally good, >= 0.
        baseline: which model to compare with; None takes the best (the first of equals).

    Raises:
        ValueError: no models, a NaN risk, or a negative tolerance.
    """
    if not len(risks) or any(math.isnan(risk) for risk in risks):
        raise ValueError("a Rashomon set needs the risk of at least one model, and none may be NaN.")
    if not tolerance >= 0.0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}.")
    first = min(range(len(risks)), key=lambda m: risks[m]) if baseline is None else baseline
    return [first, *(m for m, r in enumerate(risks) if m != first and r <= risks[first] + tolerance)]


def rashomon_set_by_test(correct: Tensor, alpha: float = 0.05) -> list[int]:
    """Models not significantly less accurate than the best one, by a paired test; the best comes first.

    One-sided exact McNemar test on the samples that exactly one of the two gets right, each model against the most
    accurate (the first of equals), without a correction for the number of models.

    Args:
        correct: (models, n) bool, whether each model is right about each validation sample.
        alpha: a model with p <= alpha is out.

    Raises:
        ValueError: another shape, or alpha outside (0, 1).
    """
    if correct.ndim != 2 or not correct.shape[0] or not 0.0 < alpha < 1.0:
        raise ValueError(f"needs correct (models, n) and alpha in (0, 1), got {tuple(correct.shape)} and {alpha}.")
    right = correct.bool().cpu()
    best = int(right.sum(1).argmax())
    lost = (right[best] & ~right).sum(1).double().numpy()  # the best right, the other wrong
    won = (~right[best] & right).sum(1).double().numpy()
    p = _fair_coin(lost, won)
    return [best, *(m for m in range(len(right)) if m != best and not p[m] <= alpha)]


def _fair_coin(heads: npt.NDArray[np.float64], tails: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P(X >= heads) of X ~ Binomial(heads + tails, 1/2); 1 for no heads."""
    tail: npt.NDArray[np.float64] = betainc(np.maximum(heads, 1.0), tails + 1.0, 0.5)
    return np.where(heads < 1.0, 1.0, tail)

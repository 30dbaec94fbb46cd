"""Selective prediction: how much risk falls when the least confident samples are left to somebody else."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dp.metrics.functional.histogram import CELLS, Device, add_up, cells
from lightning_dp.metrics.functional.outcomes import Outcomes, same_length
from lightning_dp.metrics.functional.selective_result import SelectiveResult, selective_row
from lightning_dp.metrics.groups import Groups, Values, sum_groups

__all__ = (
    "SelectiveCounts",
    "area_under_risk_coverage",
    "selective",
    "selective_counts",
    "selective_result",
    "selective_zeros",
)


class SelectiveCounts(NamedTuple):
    """Counts of samples, for each group and cell of the confidence."""

    accepted: Tensor  # (groups, CELLS): samples
    errors: Tensor  # (groups, CELLS): samples predicted wrong


def selective_zeros(num_groups: int, outcomes: Outcomes, device: Device = None) -> SelectiveCounts:
    """The counts of no samples.

    Raises:
        ValueError: several labels: a sample that is right in part has no risk to speak of.
    """
    if outcomes.task == "multilabel":
        raise ValueError(
            'selective prediction needs task="binary" or "multiclass": measure each label as a binary task.'
        )
    return SelectiveCounts(*(torch.zeros(num_groups, CELLS, dtype=torch.int64, device=device) for _ in range(2)))


def selective_counts(
    probs: Tensor,
    targets: Tensor,
    group_ids: Tensor,
    outcomes: Outcomes,
    into: SelectiveCounts,
    scores: Tensor | None = None,
) -> SelectiveCounts:
    """Adds samples to the counts behind every selective measure.

    Args:
        probs: (n,) of the positive class (predicted above one half), or (n, classes).
        targets: (n,).
        group_ids: (n,) numbers of the groups.
        outcomes: the task, binary or multi-class.
        into: the counts to add to, in place (`selective_zeros`).
        scores: (n,) confidences in [0, 1], the higher the sooner answered; None takes the largest probability.

    Raises:
        ValueError: labels, or scores that are NaN or outside [0, 1].
    """
    if outcomes.task == "multilabel":
        raise ValueError(
            'selective prediction needs task="binary" or "multiclass": measure each label as a binary task.'
        )
    p, y = outcomes.probabilities(probs), outcomes.targets(targets)
    n = same_length(p, y)
    wrong = (outcomes.decisions(probs) != y).reshape(n).long()
    if scores is None:
        confidence = torch.maximum(p, 1 - p)[:, 0] if outcomes.task == "binary" else p.amax(1)
    else:
        confidence = scores.detach().to(p.device).double().reshape(-1)
        same_length(confidence, y)
        if confidence.numel() and not bool(((confidence >= 0) & (confidence <= 1)).all()):  # false for NaN
            raise ValueError("scores must lie in [0, 1] and be numbers: map an entropy H to 1 - H / log(classes), say.")
    place = group_ids.to(p.device) * CELLS + cells(confidence)
    add_up(place, torch.ones_like(wrong), into.accepted.view(-1))
    add_up(place, wrong, into.errors.view(-1))
    return into


def selective(
    probs: Tensor,
    targets: Tensor,
    group_values: Values | None = None,
    groups: Groups | None = None,
    outcomes: Outcomes | None = None,
    scores: Tensor | None = None,
    coverages: tuple[float, ...] = (0.5, 0.8, 0.9, 1.0),
    risks: tuple[float, ...] = (0.01, 0.05, 0.1),
    confidence: float = 0.95,
) -> SelectiveResult:
    """All selective measures of one set of predictions; the twin is `lightning_dp.metrics.SelectivePrediction`.

    Args:
        probs: (n,) of the positive class, or (n, classes).
        targets: (n,).
        group_values: the samples' levels, as `Groups.encode` takes them.
        groups: the groups; None puts all samples into one.
        outcomes: the task; None reads it off the shape.
        scores: (n,) confidences in [0, 1]; None takes the largest probability.
        coverages: where scalars and tables give the selective accuracy.
        risks: where they give the coverage.
        confidence: level of the intervals.
    """
    if outcomes is None:
        outcomes = Outcomes.of("binary") if probs.ndim == 1 else Outcomes.of("multiclass", probs.shape[-1])
    groups = Groups.everybody() if groups is None else groups
    ids = groups.encode(group_values, len(probs))
    counts = selective_zeros(len(groups), outcomes, probs.device)
    selective_counts(probs, targets, ids, outcomes, counts, scores)
    return selective_result(counts, groups, coverages, risks, confidence)


def selective_result(
    counts: SelectiveCounts,
    groups: Groups,
    coverages: tuple[float, ...] = (0.5, 0.8, 0.9, 1.0),
    risks: tuple[float, ...] = (0.01, 0.05, 0.1),
    confidence: float = 0.95,
) -> SelectiveResult:
    """The measures of every group and of all samples, from counts.

    With the n samples in falling order of confidence and e_k errors among the first k:

    - the risk-coverage curve (El-Yaniv and Wiener 2010) goes through (k/n, e_k/k);
    - AURC = 1/n sum_k e_k/k (Geifman et al. 2019, arXiv 1805.08206), and E-AURC = AURC minus that of the order with all
      errors last;
    - samples with equal confidence cannot be told apart, so the curve has a point only where a whole block of ties is in,
      and inside a block e_k is its expectation over a random order of the block;
    - selective accuracy at coverage c: at the smallest accepted set that covers at least c;
    - coverage at risk r: the largest coverage whose risk on these samples is at most r. It is chosen on the samples it is
      measured on, so it promises nothing about others.

    Confidences within one of 4,096 cells of log odds are ties; ``aurc_error`` is the largest error of AURC from that.
    """
    plain = SelectiveCounts(*(value.detach().cpu() for value in counts))
    rows = tuple(
        selective_row(name, plain.accepted[g], plain.errors[g], confidence) for g, name in enumerate(groups.names)
    )
    overall = selective_row("all", plain.accepted.sum(0), plain.errors.sum(0), confidence)
    return SelectiveResult(
        rows,
        overall,
        coverages,
        risks,
        confidence,
        groups.attribute_names,
        partial(_by, plain, groups, coverages, risks, confidence),
    )


def area_under_risk_coverage(confidence: Tensor, wrong: Tensor) -> float:
    """AURC of (n,) samples without cells: only equal confidences are ties. NaN for no samples."""
    values, index = torch.unique(confidence.detach().double(), return_inverse=True)
    counts = torch.stack([torch.ones_like(index), wrong.to(index)], 1)
    accepted, errors = add_up(index, counts, counts.new_zeros(len(values), 2)).unbind(1)
    return selective_row("all", accepted, errors, 0.95).aurc.value


def _by(
    counts: SelectiveCounts,
    groups: Groups,
    coverages: tuple[float, ...],
    risks: tuple[float, ...],
    confidence: float,
    keep: tuple[str, ...],
) -> SelectiveResult:
    coarse, places = groups.collapse(keep)
    summed = SelectiveCounts(*(sum_groups(value, places, len(coarse)) for value in counts))
    return selective_result(summed, coarse, coverages, risks, confidence)

"""Fairness between groups: counts that add up, and the rates and gaps made of them."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, mean, rate
from lightning_dp.metrics.functional.fairness_result import FairnessResult, Gap, GroupRow, OutcomeRow
from lightning_dp.metrics.functional.gaps import Array, Rates, difference_to_others, gap, worse_gap
from lightning_dp.metrics.functional.histogram import CELLS, Device, add_up, cells
from lightning_dp.metrics.functional.outcomes import Outcomes, same_length
from lightning_dp.metrics.functional.ranking import aurocs_from_cells
from lightning_dp.metrics.groups import Groups, Values, sum_groups

__all__ = ("FairnessCounts", "fairness", "fairness_counts", "fairness_result", "fairness_scalars", "fairness_zeros")


class FairnessCounts(NamedTuple):
    """Counts of samples, for each group."""

    samples: Tensor  # (groups,)
    hits: Tensor  # (groups,): samples predicted right; for labels the sum of the shares of right labels
    hits_squared: Tensor  # (groups,): the same squared
    confusion: Tensor  # (groups, outcomes, 2, 2): has the outcome, is predicted to have it
    scored: Tensor  # (groups,): samples that came with probabilities
    scores: Tensor  # (groups, outcomes, CELLS, 2): by cells of the probability, has the outcome


def fairness_zeros(num_groups: int, outcomes: Outcomes, auroc: bool = True, device: Device = None) -> FairnessCounts:
    """The counts of no samples; without ``auroc`` no scores are kept."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros((num_groups, *shape), dtype=dtype, device=device)

    k = len(outcomes)
    return FairnessCounts(
        zeros(),
        zeros(dtype=torch.float64),
        zeros(dtype=torch.float64),
        zeros(k, 2, 2),
        zeros(),
        zeros(k, CELLS if auroc else 0, 2),
    )


def fairness_counts(
    preds: Tensor,
    targets: Tensor,
    group_ids: Tensor,
    outcomes: Outcomes,
    into: FairnessCounts,
    threshold: float = 0.5,
) -> FairnessCounts:
    """Adds samples to the counts behind every fairness measure.

    Args:
        preds: probabilities, (n,) of the positive class, (n, classes) or (n, labels); or decisions as whole numbers.
        targets: (n,) or (n, labels).
        group_ids: (n,) numbers of the groups.
        outcomes: the task.
        into: the counts to add to, in place (`fairness_zeros`).
        threshold: a probability above it is a positive prediction (binary task and labels).

    Returns:
        ``into``. It is untouched if the samples are refused.
    """
    y, probs = outcomes.targets(targets), outcomes.probabilities(preds) if preds.is_floating_point() else None
    decided = outcomes.decisions(preds, threshold) if probs is None else outcomes.decided(probs, threshold)
    same_length(decided, y)
    ids, k, size = group_ids.to(y.device), len(outcomes), into.scores.shape[2]
    rows = ids[:, None] * k + torch.arange(k, device=y.device)
    each = torch.ones_like(ids)
    if outcomes.task == "multiclass":
        right = (y == decided).double()
        into.confusion.add_(_confusion(y, decided, ids, into.confusion.shape[0], k))
    else:
        right = (y == decided).double().mean(1)
        add_up(((rows * 2 + y) * 2 + decided).reshape(-1), torch.ones_like(rows).reshape(-1), into.confusion.view(-1))
    if size and probs is not None:
        spot = cells(probs).add_(rows, alpha=size).mul_(2)
        counts, one = into.scores.view(-1), torch.ones_like(rows).reshape(-1)
        if (
            outcomes.task == "multiclass"
        ):  # all as negatives, then the one outcome of a sample that occurs as a positive
            add_up(spot.reshape(-1), one, counts)
            true = spot.gather(1, y[:, None])[:, 0]
            add_up(true, -each, counts)
            add_up(true + 1, each, counts)
        else:
            add_up((spot + y).reshape(-1), one, counts)
        add_up(ids, each, into.scored)
    add_up(ids, each, into.samples)
    add_up(ids, right, into.hits)
    add_up(ids, right.square(), into.hits_squared)
    return into


def _confusion(y: Tensor, decided: Tensor, ids: Tensor, num_groups: int, k: int) -> Tensor:
    """Each class against the rest, (groups, k, 2, 2), from class numbers: n additions, and not n times k."""

    def counted(place: Tensor, weight: Tensor) -> Tensor:
        return add_up(place, weight, weight.new_zeros(num_groups * k)).view(num_groups, k)

    one = torch.ones_like(ids)
    has, chosen = counted(ids * k + y, one), counted(ids * k + decided, one)
    both = counted(ids * k + y, (y == decided).to(one.dtype))
    total = has.sum(1, keepdim=True)
    rest = total - has - chosen + both
    return torch.stack([rest, chosen - both, has - both, both], -1).view(num_groups, k, 2, 2)


def fairness(
    preds: Tensor,
    targets: Tensor,
    group_values: Values,
    groups: Groups,
    outcomes: Outcomes | None = None,
    threshold: float = 0.5,
    min_count: int = 0,
    confidence: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> FairnessResult:
    """All fairness measures of one set of predictions; the stateful twin is `lightning_dp.metrics.Fairness`.

    Args:
        preds: probabilities, (n,), (n, classes) or (n, labels); or decisions as whole numbers.
        targets: (n,) or (n, labels).
        group_values: the samples' levels, as `Groups.encode` takes them.
        groups: the groups.
        outcomes: the task; None is binary.
        threshold: a probability above it is a positive prediction.
        min_count: groups with fewer samples behind a rate are left out of its gaps by name; 0 leaves nobody out.
        confidence: level of the intervals.
        n_boot: bootstrap draws behind the intervals of gaps; 0 gives none.
        seed: of the draws.
    """
    outcomes = Outcomes.of("binary") if outcomes is None else outcomes
    ids = groups.encode(group_values, len(preds))
    counts = fairness_zeros(len(groups), outcomes, device=preds.device)
    fairness_counts(preds, targets, ids, outcomes, counts, threshold)
    return fairness_result(counts, groups, outcomes, min_count, confidence, n_boot, seed)


def fairness_result(
    counts: FairnessCounts,
    groups: Groups,
    outcomes: Outcomes,
    min_count: int = 0,
    confidence: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> FairnessResult:
    """The rates of every group and the gaps between groups, from counts.

    For each outcome (the positive class, each class against the rest, each label) and groups g:

    - ``demographic_parity_difference``: max_g - min_g of the selection rate P(predicted | g), and
      ``demographic_parity_ratio``: min_g / max_g of it (fairlearn's names; also called statistical parity).
    - ``equal_opportunity_difference``: max_g - min_g of the true-positive rate (Hardt et al. 2016, arXiv 1610.02413).
    - ``equalized_odds_difference``: the larger of that and the same of the false-positive rate (as fairlearn).
    - ``auroc_gap``: max_g - min_g of the area under the ROC curve.
    - ``accuracy_difference``: max_g - min_g of the accuracy, over all outcomes together.
    - by group, signed: ``statistical_parity_difference``, the selection rate of g minus that of everybody else; and
      ``accuracy_parity_difference``, a_g - sum_{h != g} n_h a_h / sum_{h != g} n_h, which Tayebi Arasteh et al. (arXiv
      2302.01622) call statistical parity difference.

    Rates have Wilson intervals (the accuracy over several labels a normal one), AUROC has DeLong's; gaps have percentile
    intervals of a bootstrap that draws each group anew at its own size: from its 2 x 2 counts, for AUROC from the normal
    distribution with DeLong's variance. The interval of a gap is that of the two groups at its ends, see
    `lightning_dp.metrics.functional.gaps.gap`.
    """
    plain = FairnessCounts(*(value.detach().cpu() for value in counts))
    names, rng = groups.names, np.random.default_rng(seed)
    n = plain.samples.tolist()
    accuracies, accuracy_parity, apart = _accuracies(plain, names, min_count, confidence, n_boot, rng)
    overall = FairnessCounts(*(value.sum(0, keepdim=True) for value in plain))
    gaps: list[Gap] = [apart]
    by_outcome = []
    for k, outcome in enumerate(outcomes.names):
        one, found = _outcome(plain, k, outcome, names, min_count, confidence, n_boot, rng)
        by_outcome.append(one)
        gaps += found
    rows = tuple(
        GroupRow(name, n[g], accuracies[g], accuracy_parity[g], tuple(one[g] for one in by_outcome))
        for g, name in enumerate(names)
    )
    none = Estimate(math.nan, n=sum(n), reason="no other group")
    whole = tuple(
        _outcome(overall, k, outcome, ("all",), 0, confidence, 0, rng)[0][0] for k, outcome in enumerate(outcomes.names)
    )
    return FairnessResult(
        outcomes.task,
        outcomes.names,
        rows,
        GroupRow("all", sum(n), _accuracy(overall, 0, confidence), none, whole),
        tuple(gaps),
        confidence,
        groups.attribute_names,
        partial(_by, plain, groups, outcomes, min_count, confidence, n_boot, seed),
    )


def fairness_scalars(
    counts: FairnessCounts, groups: Groups, outcomes: Outcomes, measures: frozenset[str], min_count: int = 0
) -> dict[str, float]:
    """The result's ``scalars()``, or at least those of some measures.

    What is logged after every validation should not cost the rates, areas and intervals that nobody looks at: no interval
    is computed, and if only measures of accuracy are wanted nothing else is.

    Args:
        counts: as for `fairness_result`.
        groups: likewise.
        outcomes: likewise.
        measures: first parts of the wanted names.
        min_count: as for `fairness_result`.
    """
    if not measures <= {"accuracy", "accuracy_difference", "accuracy_parity_difference", "worst_group_accuracy"}:
        return fairness_result(counts, groups, outcomes, min_count, n_boot=0).scalars()
    few = counts._replace(  # the scores stay where they are
        samples=counts.samples.cpu(), hits=counts.hits.cpu(), hits_squared=counts.hits_squared.cpu()
    )
    accuracies, parity, apart = _accuracies(few, groups.names, min_count, 0.95, 0, np.random.default_rng(0))
    known = [a.value for a in accuracies if not math.isnan(a.value)]
    named = {"accuracy_difference": apart.value, "worst_group_accuracy": min(known, default=math.nan)}
    for name, accuracy, other in zip(groups.names, accuracies, parity, strict=True):
        named |= {f"accuracy/{name}": accuracy.value, f"accuracy_parity_difference/{name}": other.value}
    return {name: value for name, value in named.items() if name.split("/")[0] in measures}


def _accuracies(
    counts: FairnessCounts,
    names: tuple[str, ...],
    min_count: int,
    confidence: float,
    n_boot: int,
    rng: np.random.Generator,
) -> tuple[list[Estimate], list[Estimate], Gap]:
    """Each group's accuracy, its difference to the others, and the largest difference between groups."""
    sizes = counts.samples.double().numpy()
    accuracies = [_accuracy(counts, g, confidence) for g in range(len(names))]
    shares = Rates(np.array([a.value for a in accuracies]), sizes, _accuracy_draws(counts, n_boot, rng), "no samples")
    parity = difference_to_others(shares, sizes, [int(size) for size in sizes], confidence)
    return accuracies, list(parity), gap("accuracy_difference", "", shares, names, "difference", min_count, confidence)


def _by(
    counts: FairnessCounts,
    groups: Groups,
    outcomes: Outcomes,
    min_count: int,
    confidence: float,
    n_boot: int,
    seed: int,
    keep: tuple[str, ...],
) -> FairnessResult:
    coarse, places = groups.collapse(keep)
    summed = FairnessCounts(*(sum_groups(value, places, len(coarse)) for value in counts))
    return fairness_result(summed, coarse, outcomes, min_count, confidence, n_boot, seed)


def _accuracy(counts: FairnessCounts, g: int, confidence: float) -> Estimate:
    n, hits, squares = int(counts.samples[g]), float(counts.hits[g]), float(counts.hits_squared[g])
    # Each sample wholly right or wrong: a proportion. With several labels a sample is right in part.
    return rate(hits, n, confidence) if hits == squares else mean(hits, squares, n, confidence)


def _accuracy_draws(counts: FairnessCounts, n_boot: int, rng: np.random.Generator) -> Array:
    columns = []
    for size, hits, squares in zip(
        counts.samples.tolist(), counts.hits.tolist(), counts.hits_squared.tolist(), strict=True
    ):
        if size == 0:
            columns.append(np.full(n_boot, math.nan))
        elif hits == squares:
            columns.append(rng.binomial(size, hits / size, n_boot) / size)
        else:
            spread = math.sqrt(max(0.0, squares / size - (hits / size) ** 2) / size)
            columns.append(rng.normal(hits / size, spread, n_boot))
    return np.stack(columns, 1).astype(np.float64)


def _outcome(
    counts: FairnessCounts,
    k: int,
    outcome: str,
    names: tuple[str, ...],
    min_count: int,
    confidence: float,
    n_boot: int,
    rng: np.random.Generator,
) -> tuple[list[OutcomeRow], list[Gap]]:
    """One outcome: its rates in every group and its gaps."""
    table = counts.confusion[:, k].double().numpy()  # (groups, has it, predicted)
    drawn = np.stack([_draws(cells4, n_boot, rng) for cells4 in table], 1)  # (draws, groups, 2, 2)
    selection = _rates(
        table[:, :, 1].sum(1), table.sum((1, 2)), drawn[..., 1].sum(-1), drawn.sum((-1, -2)), "no samples"
    )
    tpr = _rates(table[:, 1, 1], table[:, 1].sum(1), drawn[..., 1, 1], drawn[..., 1, :].sum(-1), "no positives")
    fpr = _rates(table[:, 0, 1], table[:, 0].sum(1), drawn[..., 0, 1], drawn[..., 0, :].sum(-1), "no negatives")
    areas = _aurocs(counts, k, confidence)
    normal = np.stack([rng.normal(0.0, 1.0, n_boot) * error + area.value for area, _, error in areas], 1)
    smaller = np.minimum(table[:, 0].sum(1), table[:, 1].sum(1))
    auroc = Rates(np.array([area.value for area, _, _ in areas]), smaller, np.clip(normal, 0.0, 1.0), "no AUROC")
    sizes = table.sum((1, 2))
    n = [int(size) for size in sizes]
    parity = difference_to_others(selection, sizes, n, confidence)
    rows = []
    for g in range(len(names)):
        (tn, fp), (fn, tp) = table[g].tolist()
        rows.append(
            OutcomeRow(
                outcome,
                accuracy=rate(tn + tp, n[g], confidence),
                base_rate=rate(fn + tp, n[g], confidence),
                selection_rate=rate(fp + tp, n[g], confidence),
                tpr=rate(tp, int(fn + tp), confidence, "no positives"),
                fpr=rate(fp, int(tn + fp), confidence, "no negatives"),
                auroc=areas[g][0],
                auroc_error=areas[g][1],
                statistical_parity_difference=parity[g],
            )
        )

    def apart(name: str, rates: Rates) -> Gap:
        return gap(name, outcome, rates, names, "difference", min_count, confidence)

    opportunity, false_alarms = apart("equal_opportunity_difference", tpr), apart("", fpr)
    return rows, [
        apart("demographic_parity_difference", selection),
        gap("demographic_parity_ratio", outcome, selection, names, "ratio", min_count, confidence),
        opportunity,
        worse_gap("equalized_odds_difference", opportunity, false_alarms),
        apart("auroc_gap", auroc),
    ]


def _draws(cells4: Array, n_boot: int, rng: np.random.Generator) -> Array:
    """Bootstrap of a group from its 2 x 2 counts, at its own size: (draws, 2, 2)."""
    size = cells4.sum()
    if size == 0:
        return np.zeros((n_boot, 2, 2))
    return rng.multinomial(int(size), cells4.reshape(-1) / size, n_boot).reshape(n_boot, 2, 2).astype(np.float64)


def _rates(hits: Array, among: Array, drawn_hits: Array, drawn_among: Array, missing: str) -> Rates:
    """The shares hits / among, (groups,), and those of the draws, (draws, groups)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return Rates(hits / among, among, drawn_hits / drawn_among, missing)


def _aurocs(counts: FairnessCounts, k: int, confidence: float) -> list[tuple[Estimate, float, float]]:
    """AUROC in every group with DeLong's interval, how far the cells can mislead it, and its standard error."""
    kept = counts.scores.shape[2] > 0
    found = aurocs_from_cells(counts.scores[:, k], confidence) if kept else []
    reason = "decisions without probabilities" if kept else "AUROC is switched off"
    return [
        found[g] if kept and scored == n else (Estimate(math.nan, n=n, reason=reason), math.nan, math.nan)
        for g, (n, scored) in enumerate(zip(counts.samples.tolist(), counts.scored.tolist(), strict=True))
    ]

"""Calibration: do predicted probabilities come true? Sums that add up, and the measures made of them.

The sums (`calibration_counts`) add over batches, ranks and groups; the measures (`calibration_result`) need the sums alone.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dp.metrics.estimate import Estimate, mean, rate
from lightning_dp.metrics.functional.calibration_result import CalibrationResult, CalibrationRow, ReliabilityBin
from lightning_dp.metrics.functional.histogram import CELLS, Device, add_up, cells
from lightning_dp.metrics.functional.outcomes import Outcomes, same_length
from lightning_dp.metrics.groups import Groups, Values, sum_groups

__all__ = (
    "CalibrationCounts",
    "adaptive_calibration_error",
    "calibration",
    "calibration_counts",
    "calibration_result",
    "calibration_scalars",
    "calibration_zeros",
)


class CalibrationCounts(NamedTuple):
    """Sums over samples, for each group. An *event* is what a probability is about: see `calibration_counts`.

    Each of ``bins``, ``classes`` and ``cells`` has three entries last: number of events, of events that came true, and the
    sum of their probabilities.
    """

    samples: Tensor  # (groups,): number of samples
    hits: Tensor  # (groups,): samples predicted right; for labels the mean share of labels
    hits_squared: Tensor  # (groups,): the same squared
    bins: Tensor  # (groups, bins, 3): by equal-width bins of the probability
    classes: Tensor  # (groups, outcomes, bins, 3): the same for each outcome apart
    cells: Tensor  # (groups, CELLS, 3): by fine cells, for equal-mass bins
    brier: Tensor  # (groups, 2): sums of the Brier scores and of their squares
    nll: Tensor  # (groups, 2): sums of the finite negative log likelihoods and of their squares
    impossible: Tensor  # (groups,): samples whose true outcome has probability 0


def calibration_zeros(
    num_groups: int, outcomes: Outcomes, n_bins: int = 15, device: Device = None
) -> CalibrationCounts:
    """The sums of no samples."""
    shapes = ((), (), (), (n_bins, 3), (len(outcomes), n_bins, 3), (CELLS, 3), (2,), (2,), ())
    return CalibrationCounts(*(torch.zeros((num_groups, *s), dtype=torch.float64, device=device) for s in shapes))


def calibration_counts(
    probs: Tensor, targets: Tensor, group_ids: Tensor, outcomes: Outcomes, into: CalibrationCounts
) -> CalibrationCounts:
    """Adds samples to the sums behind every calibration measure.

    The events: for a binary task that the positive class occurs, for a multi-class task that the most probable class is
    right (top-label), for labels that a label occurs, all labels pooled.

    Args:
        probs: (n,) of the positive class, (n, classes), or (n, labels).
        targets: (n,) or (n, labels).
        group_ids: (n,) numbers of the groups.
        outcomes: the task.
        into: the sums to add to, in place (`calibration_zeros`); they say how many groups and bins there are. The bins are
            of equal width in [0, 1]; a value on an edge belongs to the bin above, 1 to the last.

    Returns:
        ``into``. It is untouched if the samples are refused.
    """
    p, y = outcomes.probabilities(probs).double(), outcomes.targets(targets)
    n, k = same_length(p, y), len(outcomes)
    ids = group_ids.to(p.device)
    class_rows = ids[:, None] * k + torch.arange(k, device=p.device)
    if outcomes.task == "multiclass":
        confidence, top = p.max(1) if n else (p.sum(1), y)
        right = (top == y).double()
        events, came = confidence[:, None], right[:, None]
        true = y[:, None]  # the outcome that occurs
        of_truth = p.gather(1, true)[:, 0]
        per_sample_nll = -of_truth.log()
        brier = torch.linalg.vecdot(p, p) - of_truth.square() + (1 - of_truth).square()
    else:
        truth = y
        right = ((p > 0.5).long() == truth).double().mean(1)
        events, came = p, truth.double()
        per_sample_nll = -torch.where(truth == 1, p, 1 - p).log().mean(1)
        brier = (p - truth).square().mean(1)

    n_bins = into.bins.shape[1]
    inner_edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64, device=p.device)[1:-1]
    bins = torch.bucketize(p, inner_edges, right=True)
    places = bins.add(class_rows, alpha=n_bins)
    if outcomes.task == "multiclass":
        event_bins = bins.gather(1, top[:, None])
        _add_columns(places, None, p, into.classes)
        # One outcome a sample occurs: n additions, and not n times the number of classes.
        add_up(places.gather(1, true)[:, 0], torch.ones_like(of_truth), into.classes.view(-1, 3)[:, 1])
    else:
        event_bins = bins
        _add_columns(places, came, p, into.classes)
    rows = ids[:, None].expand_as(events)
    _add_columns(rows * n_bins + event_bins, came, events, into.bins)
    _add_columns(rows * CELLS + cells(events), came, events, into.cells)
    possible = torch.isfinite(per_sample_nll)
    nll = per_sample_nll.where(possible, torch.zeros_like(per_sample_nll))
    add_up(ids, torch.ones_like(right), into.samples)
    add_up(ids, right, into.hits)
    add_up(ids, right.square(), into.hits_squared)
    add_up(ids, torch.stack([brier, brier.square()], 1), into.brier)
    add_up(ids, torch.stack([nll, nll.square()], 1), into.nll)
    add_up(ids, ~possible, into.impossible)
    return into


def _add_columns(place: Tensor, came: Tensor | None, p: Tensor, sums: Tensor) -> None:
    """Adds one event for each place: its count, whether it came true (if given), its probability; a column at a time."""
    flat, columns = place.reshape(-1), sums.view(-1, 3)
    add_up(flat, torch.ones_like(p).reshape(-1), columns[:, 0])
    if came is not None:
        add_up(flat, came.reshape(-1), columns[:, 1])
    add_up(flat, p.reshape(-1), columns[:, 2])


def calibration(
    probs: Tensor,
    targets: Tensor,
    group_values: Values | None = None,
    groups: Groups | None = None,
    outcomes: Outcomes | None = None,
    n_bins: int = 15,
    confidence: float = 0.95,
) -> CalibrationResult:
    """All calibration measures of one set of predictions; the stateful twin is `lightning_dp.metrics.Calibration`.

    Args:
        probs: (n,) of the positive class, (n, classes), or (n, labels).
        targets: (n,) or (n, labels).
        group_values: the samples' levels, as `Groups.encode` takes them.
        groups: the groups; None puts all samples into one.
        outcomes: the task; None reads it off the shape: binary for (n,), multi-class for (n, classes).
        n_bins: bins of every binned measure.
        confidence: level of the intervals.
    """
    if outcomes is None:
        outcomes = Outcomes.of("binary") if probs.ndim == 1 else Outcomes.of("multiclass", probs.shape[-1])
    groups = Groups.everybody() if groups is None else groups
    ids = groups.encode(group_values, len(probs))
    counts = calibration_zeros(len(groups), outcomes, n_bins, probs.device)
    calibration_counts(probs, targets, ids, outcomes, counts)
    return calibration_result(counts, groups, outcomes, confidence)


def calibration_result(
    counts: CalibrationCounts, groups: Groups, outcomes: Outcomes, confidence: float = 0.95
) -> CalibrationResult:
    """The measures of every group and of all samples together, from their sums.

    Definitions (B bins, n events; conf and freq are the mean probability and the share that came true in a bin):

    - ECE = sum_b n_b/n |freq_b - conf_b| and MCE = max_b |freq_b - conf_b| over equal-width bins (Guo et al. 2017, arXiv
      1706.04599); torchmetrics' ``CalibrationError`` but for probabilities of exactly 1, which it puts in a bin of their own.
    - adaptive ECE: the same over bins of equal mass (Nguyen and O'Connor 2015, arXiv 1508.05154; Nixon et al. 2019, arXiv
      1904.01685). Equal probabilities stay in one bin; probabilities within one fine cell count as equal, see
      `adaptive_calibration_error` for the measure without cells.
    - classwise ECE: the mean over outcomes of the ECE of "this outcome occurs" (Kull et al. 2019, arXiv 1910.12656).
    - Brier score: mean squared distance to the truth, summed over classes, in [0, 2] (Brier 1950); for a binary task
      (p - y)^2, in [0, 1]; over labels the mean of that.
    - NLL: mean of -log p(truth) in nats; over labels the mean of that. Infinite if the truth had probability 0.

    Binned errors are biased upwards in small groups (a perfectly calibrated group of 50 shows an ECE well above 0): compare
    groups of unlike size by Brier score or NLL, or look at the intervals of the bins. ECE has no interval for that reason.
    """
    plain = CalibrationCounts(*(value.detach().cpu() for value in counts))
    rows = tuple(
        _row(name, CalibrationCounts(*(v[g] for v in plain)), confidence) for g, name in enumerate(groups.names)
    )
    overall = _row("all", CalibrationCounts(*(v.sum(0) for v in plain)), confidence)
    return CalibrationResult(
        outcomes.task,
        rows,
        overall,
        confidence,
        groups.attribute_names,
        partial(_by, plain, groups, outcomes, confidence),
    )


def calibration_scalars(counts: CalibrationCounts, groups: Groups, measures: frozenset[str]) -> dict[str, float] | None:
    """Some of the result's ``scalars()``, of all groups in one go; None where the result itself has to be made.

    What is logged after every validation should not cost the measures, intervals and tables that nobody looks at.

    Args:
        counts: as for `calibration_result`.
        groups: likewise.
        measures: names out of ``accuracy``, ``ece``, ``mce``, ``brier`` and ``nll``.
    """
    if not measures <= {"accuracy", "ece", "mce", "brier", "nll"}:
        return None

    places = ["", *(() if groups.attribute_names == ("",) else (f"/{name}" for name in groups.names))]

    def with_all(value: Tensor) -> Tensor:
        value = value.detach().cpu().double()
        return torch.cat([value.sum(0, keepdim=True), value])[: len(places)]

    n = with_all(counts.samples)
    gaps, weights = _gaps(with_all(counts.bins))
    found = {
        "accuracy": with_all(counts.hits) / n,
        "ece": (gaps * weights).sum(-1),
        "mce": gaps.amax(-1),
        "brier": with_all(counts.brier)[:, 0] / n,
        "nll": with_all(counts.nll)[:, 0] / n,
    }
    found["nll"][with_all(counts.impossible) > 0] = math.inf
    return {
        name + place: value if size else math.nan
        for name in sorted(measures)
        for place, value, size in zip(places, found[name].tolist(), n.tolist(), strict=True)
    }


def adaptive_calibration_error(probabilities: Tensor, came_true: Tensor, n_bins: int = 15) -> float:
    """Equal-mass calibration error of (n,) events, without cells: only equal probabilities are ties.

    Samples are ranked by probability and cut into ``n_bins`` bins of equal mass. Equal probabilities stay together, in the
    bin of the middle of their ranks, so that the value does not hang on the order of the samples. (The result of the fine
    cells differs from this by at most 2 (n_bins - 1) times the largest share of events in one cell.)
    """
    p = probabilities.detach().double()
    values, index = torch.unique(p, return_inverse=True)
    events = torch.stack([torch.ones_like(p), came_true.to(p), p], 1)
    return _equal_mass_error(add_up(index, events, events.new_zeros(len(values), 3)), n_bins)


def _by(
    counts: CalibrationCounts, groups: Groups, outcomes: Outcomes, confidence: float, keep: tuple[str, ...]
) -> CalibrationResult:
    coarse, places = groups.collapse(keep)
    summed = CalibrationCounts(*(sum_groups(value, places, len(coarse)) for value in counts))
    return calibration_result(summed, coarse, outcomes, confidence)


def _row(name: str, counts: CalibrationCounts, confidence: float) -> CalibrationRow:
    n = int(counts.samples)
    hits, squares = float(counts.hits), float(counts.hits_squared)
    whole = hits == squares  # each sample wholly right or wrong: a proportion
    accuracy = rate(hits, n, confidence) if whole else mean(hits, squares, n, confidence)
    gaps, weights = _gaps(counts.bins)
    classwise = torch.stack([(w * g).sum() for g, w in (_gaps(bins) for bins in counts.classes)]).mean()
    nll = mean(float(counts.nll[0]), float(counts.nll[1]), n, confidence)
    impossible = int(counts.impossible)
    if impossible:
        nll = Estimate(math.inf, n=n, reason=f"{impossible} of {n} samples give their true outcome probability 0")

    def plain(value: float) -> Estimate:
        return Estimate(value, n=n) if n else Estimate(math.nan, n=0, reason="no samples")

    return CalibrationRow(
        group=name,
        n=n,
        accuracy=accuracy,
        ece=plain(float((gaps * weights).sum())),
        mce=plain(float(gaps.max())),
        adaptive_ece=plain(_equal_mass_error(counts.cells, counts.bins.shape[0])),
        classwise_ece=plain(float(classwise)),
        brier=mean(float(counts.brier[0]), float(counts.brier[1]), n, confidence),
        nll=nll,
        bins=_reliability(counts.bins, confidence),
    )


def _gaps(bins: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between frequency and confidence (0 in empty bins) and the bins' shares; bins (..., B, 3)."""
    n = bins[..., 0]
    return (bins[..., 1] - bins[..., 2]).abs() / n.clamp(min=1), n / n.sum(-1, keepdim=True).clamp(min=1)


def _equal_mass_error(blocks: Tensor, n_bins: int) -> float:
    """Calibration error over bins of equal mass, from ordered blocks (count, came true, sum of p) that stay whole."""
    blocks = blocks[blocks[:, 0] > 0]
    if not len(blocks):
        return math.nan
    after = blocks[:, 0].cumsum(0)
    middle = after - 0.5 * blocks[:, 0]
    place = torch.floor(middle * n_bins / after[-1]).long().clamp(max=n_bins - 1)
    gaps, weights = _gaps(sum_groups(blocks, place, n_bins))
    return float((gaps * weights).sum())


def _reliability(bins: Tensor, confidence: float) -> tuple[ReliabilityBin, ...]:
    size = len(bins)
    return tuple(
        ReliabilityBin(
            low=b / size,
            high=(b + 1) / size,
            confidence=total / n if n else math.nan,
            frequency=rate(came, int(n), confidence, "empty bin"),
        )
        for b, (n, came, total) in enumerate(bins.tolist())
    )

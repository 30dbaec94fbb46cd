"""Predictive multiplicity: how far the answer depends on which of several equally good models is asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dp.metrics.functional.abstention import Abstention, answer
from lightning_dp.metrics.functional.histogram import Device, add_up
from lightning_dp.metrics.functional.multiplicity_result import RANGE_CELLS, MultiplicityResult, multiplicity_row
from lightning_dp.metrics.groups import Groups, sum_groups
from lightning_dp.metrics.tally import MemberTally

__all__ = ("MultiplicityCounts", "multiplicity_counts", "multiplicity_result", "multiplicity_zeros")


class MultiplicityCounts(NamedTuple):
    """Sums over samples, for each group."""

    samples: Tensor  # (groups,)
    ambiguous: Tensor  # (groups,): samples on which some member contradicts the baseline
    contradicted: Tensor  # (groups, 2): sums of the share of members that contradict it, and of its square
    pairs: Tensor  # (groups, 2): sums of the share of pairs of members that differ, and of its square
    ranges: Tensor  # (groups, 2): sums of the viable range, and of its square
    range_cells: Tensor  # (groups, RANGE_CELLS): samples by viable range
    ranged: Tensor  # (groups,): samples whose members gave probabilities
    disagreements: Tensor  # (groups, members): samples on which the member contradicts the baseline
    labelled: Tensor  # (groups,): samples with a target
    errors: Tensor  # (groups, members): samples the member gets wrong
    answered: Tensor  # (groups, rules): samples with a target or without that the ensemble answers
    right: Tensor  # (groups, rules): labelled samples that it answers right
    answered_labelled: Tensor  # (groups, rules): labelled samples that it answers


def multiplicity_zeros(num_groups: int, num_members: int, num_rules: int, device: Device = None) -> MultiplicityCounts:
    """The sums of no samples."""
    whole: tuple[tuple[int, ...], ...] = (
        (),
        (),
        (2,),
        (2,),
        (2,),
        (RANGE_CELLS,),
        (),
        (num_members,),
        (),
        (num_members,),
    )
    shapes = (*whole, (num_rules,), (num_rules,), (num_rules,))
    return MultiplicityCounts(*(torch.zeros((num_groups, *s), dtype=torch.float64, device=device) for s in shapes))


def multiplicity_counts(
    tally: MemberTally, rules: Sequence[Abstention], into: MultiplicityCounts
) -> MultiplicityCounts:
    """Adds the samples of a tally of all members to the sums behind every measure of multiplicity.

    Args:
        tally: what each member said of the samples.
        rules: the rules of abstention, in the order of ``into``.
        into: the sums to add to, in place (`multiplicity_zeros`).

    Returns:
        ``into``.
    """
    ids, members = tally.group_ids, len(tally)
    ones = torch.ones_like(ids)

    def moments(values: Tensor) -> Tensor:
        return torch.stack([values, values.square()], 1)

    votes = tally.votes.double()
    alike = (votes * (votes - 1)).sum(1) / max(1, members * (members - 1))
    differ = 1 - alike if members > 1 else torch.zeros_like(alike)
    ranged = ones if tally.with_probabilities else torch.zeros_like(ids)
    spread = (tally.high - tally.low).amax(1).clamp(min=0) * ranged
    cell = (spread * RANGE_CELLS).long().clamp(0, RANGE_CELLS - 1)
    labelled = torch.zeros_like(ids) if tally.targets is None else ones
    answers = [answer(tally.votes, rule) for rule in rules]
    right = [torch.zeros_like(ids) if tally.targets is None else (a == tally.targets).long() for a in answers]
    given = [(a >= 0).long() for a in answers]
    add_up(ids, ones, into.samples)
    add_up(ids, tally.contradicted > 0, into.ambiguous)
    add_up(ids, moments(tally.contradicted.double() / max(1, members)), into.contradicted)
    add_up(ids, moments(differ), into.pairs)
    add_up(ids, moments(spread), into.ranges)
    add_up(ids * RANGE_CELLS + cell, ranged, into.range_cells.view(-1))
    add_up(ids, ranged, into.ranged)
    add_up(ids, labelled, into.labelled)
    into.disagreements.add_(torch.stack(tally.disagreements, 1))
    into.errors.add_(torch.stack(tally.errors, 1))
    if rules:
        add_up(ids, torch.stack(given, 1), into.answered)
        add_up(ids, torch.stack(right, 1), into.right)
        add_up(ids, torch.stack(given, 1) * labelled[:, None], into.answered_labelled)
    return into


def multiplicity_result(
    counts: MultiplicityCounts, groups: Groups, rules: Sequence[Abstention], confidence: float = 0.95
) -> MultiplicityResult:
    """The measures of every group and of all samples, from sums.

    With the members h of a set R of equally good models, one of them the baseline h0, on n samples:

    - ambiguity: share of samples on which some member contradicts h0, which is the share on which any two differ; and
      discrepancy: the largest share of samples on which one member contradicts h0 (Marx et al. 2020, arXiv 1909.06677);
    - obscurity: mean over samples of the share of members (h0 among them) that contradict h0;
    - pairwise disagreement: mean over samples of the share of pairs of members that differ, and self-consistency: 1 minus
      that, the chance that two members drawn without replacement agree (Cooper et al. 2024, arXiv 2301.11562);
    - viable range: mean over samples of max_h p - min_h p (Watson-Daniels et al. 2023, arXiv 2206.01131); with several
      classes the largest over classes. ``viable_range_95``: the value that 95 % of the samples do not exceed, from cells of
      0.01, rounded up;
    - of the ensemble by each rule: coverage, abstention and selective accuracy, see `Abstention`.

    Obscurity <= discrepancy <= ambiguity. The last two can only grow with the number of members: give it with them.
    """
    plain = MultiplicityCounts(*(value.detach().cpu() for value in counts))
    names = tuple(rule.name for rule in rules)
    rows = tuple(
        multiplicity_row(name, MultiplicityCounts(*(v[g] for v in plain)), names, confidence)
        for g, name in enumerate(groups.names)
    )
    overall = multiplicity_row("all", MultiplicityCounts(*(v.sum(0) for v in plain)), names, confidence)
    return MultiplicityResult(
        rows,
        overall,
        plain.disagreements.shape[1],
        names,
        confidence,
        groups.attribute_names,
        partial(_by, plain, groups, tuple(rules), confidence),
    )


def _by(
    counts: MultiplicityCounts,
    groups: Groups,
    rules: tuple[Abstention, ...],
    confidence: float,
    keep: tuple[str, ...],
) -> MultiplicityResult:
    coarse, places = groups.collapse(keep)
    summed = MultiplicityCounts(*(sum_groups(value, places, len(coarse)) for value in counts))
    return multiplicity_result(summed, coarse, rules, confidence)

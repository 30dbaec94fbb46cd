"""Multiplicity against plain loops, hand tables and the inequalities its measures obey."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from lightning_dp.metrics import (
    Abstention,
    Multiplicity,
    MultiplicityResult,
    answer,
    ensemble_ambiguity,
    rashomon_set,
    rashomon_set_by_test,
)
from tests.metrics.helpers import GROUPS, Data, data

few = settings(max_examples=25)
seeds, counts = st.integers(0, 10_000), st.integers(1, 8)
tasks = st.sampled_from(["binary", "multiclass"])
RULES = (Abstention.unanimity(), Abstention.consensus(0.6), Abstention.binomial(0.2))


def members(d: Data, number: int, seed: int) -> list[Tensor]:
    """Models that share a signal and differ by noise."""
    make = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        logits = d.probs.log() if d.probs.ndim == 2 else d.probs.logit(1e-6)
        noisy = logits + torch.randn(d.probs.shape, generator=make)
        found.append(noisy.softmax(1) if d.probs.ndim == 2 else noisy.sigmoid())
    return found


def measured(d: Data, models: list[Tensor], targets: bool = True, chunks: int = 1) -> MultiplicityResult:
    task = d.outcomes.task
    metric = Multiplicity(len(models), task, None if task == "binary" else len(d.outcomes), groups=GROUPS, rules=RULES)
    for part in torch.arange(len(d.probs)).tensor_split(chunks):
        tally = metric.tally(d.targets[part] if targets else None, d.groups[part], len(part))
        for probs in models:
            tally.add(probs[part])
        metric.update(tally)
    return metric.result()


@few
@given(seed=seeds, number=counts, n=st.integers(1, 60), task=tasks, chunks=st.integers(1, 3))
def test_measures_are_those_of_plain_loops(seed: int, number: int, n: int, task: str, chunks: int) -> None:
    d = data(task, n, seed)
    models = members(d, number, seed)
    result = measured(d, models, chunks=chunks)
    decided = torch.stack([d.outcomes.decisions(p).reshape(-1) for p in models])  # (members, n)
    probs = torch.stack([p.reshape(n, -1) for p in models]).double()
    for row, mine in [(result.overall, torch.ones(n).bool()), *zip(result.rows, group_masks(d), strict=True)]:
        m = int(mine.sum())
        assert row.n == m
        if not m:
            assert row.ambiguity.reason == row.discrepancy.reason == row.viable_range.reason == "no samples"
            continue
        votes, p = decided[:, mine], probs[:, mine]
        contradicts = (votes != votes[0]).double()
        assert row.ambiguity.value == pytest.approx(float(contradicts.amax(0).mean()))
        assert row.discrepancy.value == pytest.approx(float(contradicts.mean(1).max()))
        assert row.obscurity.value == pytest.approx(float(contradicts.mean()))
        spread = (p.amax(0) - p.amin(0)).amax(1)
        assert row.viable_range.value == pytest.approx(float(spread.mean()))
        share = float((spread <= row.viable_range_95.value).double().mean())
        assert share >= 0.95 - 1e-9
        below = float((spread <= row.viable_range_95.value - 0.01 - 1e-9).double().mean())
        assert below < 0.95
        pairs = list(itertools.combinations(range(number), 2))
        if pairs:
            differ = np.mean([float((votes[a] != votes[b]).double().mean()) for a, b in pairs])
            assert row.pairwise_disagreement.value == pytest.approx(differ)
            assert row.self_consistency.value == pytest.approx(1 - differ)
        else:
            assert row.self_consistency.reason == "one member has no pairs"
        truth = d.targets[mine]
        for k, got in enumerate(row.member_accuracy):
            assert got.value == pytest.approx(float((votes[k] == truth).double().mean()))
        for rule, ensemble in zip(RULES, row.ensembles, strict=True):
            answers = [loop_answer(votes[:, i].tolist(), rule) for i in range(m)]
            given_ = [(a, int(t)) for a, t in zip(answers, truth, strict=True) if a is not None]
            assert ensemble.coverage.value == pytest.approx(len(given_) / m)
            assert ensemble.abstention.value == pytest.approx(1 - len(given_) / m)
            if given_:
                assert ensemble.selective_accuracy.value == pytest.approx(np.mean([a == t for a, t in given_]))
            else:
                assert ensemble.selective_accuracy.reason == "nothing is answered"


def group_masks(d: Data) -> list[Tensor]:
    return [d.cells == g for g in range(6)]


def loop_answer(votes: list[int], rule: Abstention) -> int | None:
    ranked = sorted(((votes.count(c), -c) for c in set(votes)), reverse=True)
    first, second = ranked[0][0], ranked[1][0] if len(ranked) > 1 else 0
    if first == second:
        return None
    if rule.kind == "binomial":
        enough = binomtest(first, first + second, alternative="two-sided").pvalue <= rule.level
    else:
        enough = first / len(votes) >= rule.level - 1e-12
    return -ranked[0][1] if enough else None


@few
@given(seed=seeds, number=counts, n=st.integers(1, 60), task=tasks)
def test_obscurity_is_at_most_discrepancy_is_at_most_ambiguity(seed: int, number: int, n: int, task: str) -> None:
    d = data(task, n, seed)
    result = measured(d, members(d, number, seed))
    for row in (result.overall, *(row for row in result.rows if row.n)):
        assert row.obscurity.value <= row.discrepancy.value + 1e-12
        assert row.discrepancy.value <= row.ambiguity.value <= 1.0
        sums = sum(1 - e.value for e in row.member_accuracy)
        assert row.ambiguity.value <= sums + number * (1 - row.member_accuracy[0].value) + 1e-9
        if number > 1:  # two models that err on a share e of the samples differ on 2 e of them at most
            worst = max(1 - e.value for e in row.member_accuracy)
            assert row.discrepancy.value <= (1 - row.member_accuracy[0].value) + worst + 1e-9


def test_a_hand_table_of_three_models_and_four_samples() -> None:
    metric = Multiplicity(3, "binary", rules=(Abstention.unanimity(), Abstention.consensus(2 / 3)))
    tally = metric.tally(torch.tensor([1, 1, 0, 0]))
    for decisions in ([1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]):
        tally.add(torch.tensor(decisions))
    metric.update(tally)
    row = metric.result().overall
    assert row.ambiguity.value == 0.75
    assert row.discrepancy.value == 0.5
    assert row.obscurity.value == pytest.approx(4 / 12)
    assert row.pairwise_disagreement.value == pytest.approx(0.75 * 2 / 3)
    assert [e.value for e in row.member_accuracy] == [1.0, 0.5, 0.5]
    assert row.viable_range.reason == "decisions without probabilities"
    unanimous, majority = row.ensembles
    assert (unanimous.coverage.value, unanimous.selective_accuracy.value) == (0.25, 1.0)
    assert (majority.coverage.value, majority.selective_accuracy.value) == (1.0, 0.75)


@pytest.mark.parametrize("number", [1, 5])
def test_models_that_agree_have_no_multiplicity(number: int) -> None:
    d = data("multiclass", 50, 0)
    row = measured(d, [d.probs] * number).overall
    assert row.ambiguity.value == row.discrepancy.value == row.obscurity.value == row.viable_range.value == 0.0
    assert row.ensembles[0].coverage.value == 1.0


def test_ambiguity_and_coverage_under_unanimity_move_one_way_with_more_members() -> None:
    d = data("multiclass", 200, 1)
    models = members(d, 8, 1)
    rows = [measured(d, models[:k]).overall for k in range(1, 9)]
    ambiguity = [row.ambiguity.value for row in rows]
    coverage = [row.ensembles[0].coverage.value for row in rows]
    assert ambiguity == sorted(ambiguity)
    assert coverage == sorted(coverage, reverse=True)
    assert coverage == pytest.approx([1 - a for a in ambiguity])


def test_without_targets_there_is_coverage_and_no_accuracy() -> None:
    d = data("binary", 40, 2)
    row = measured(d, members(d, 3, 0), targets=False).overall
    assert row.ensembles[0].coverage.value > 0
    assert row.ensembles[0].selective_accuracy.reason == "no targets"
    assert row.member_accuracy[0].reason == "no targets"


def test_a_tally_does_not_grow_with_its_members() -> None:
    d = data("multiclass", 30, 0)
    metric = Multiplicity(200, num_classes=4)
    tally = metric.tally(d.targets)

    def per_sample() -> int:
        return sum(v.numel() for v in vars(tally).values() if isinstance(v, Tensor))

    before = per_sample()
    for probs in members(d, 200, 0):
        tally.add(probs)
    assert per_sample() == before
    metric.update(tally)


def test_a_tally_of_another_number_of_members_is_refused() -> None:
    d = data("binary", 10, 0)
    metric = Multiplicity(3, "binary")
    tally = metric.tally(d.targets)
    tally.add(d.probs)
    with pytest.raises(ValueError, match="heard 1 members, the metric compares 3"):
        metric.update(tally)
    with pytest.raises(ValueError, match="predicts 5 samples, the tally has 10"):
        tally.add(d.probs[:5])
    with pytest.raises(ValueError, match="needs num_samples"):
        metric.tally()


def test_a_tie_for_the_first_place_abstains() -> None:
    votes = torch.tensor([[2, 2, 0], [3, 1, 0], [0, 0, 4]])
    assert answer(votes, Abstention.consensus(0.5)).tolist() == [-1, 0, 2]
    assert answer(votes, Abstention.unanimity()).tolist() == [-1, -1, 2]


@pytest.mark.parametrize("first, second", [(5, 0), (6, 0), (9, 1), (8, 2), (40, 25), (30, 25)])
def test_the_binomial_rule_is_scipys_test(first: int, second: int) -> None:
    p = binomtest(first, first + second).pvalue
    votes = torch.tensor([[second, first, 0]])
    assert answer(votes, Abstention.binomial(0.05)).tolist() == [1 if p <= 0.05 else -1]


def test_ensembles_are_compared_where_none_abstains() -> None:
    answers = torch.tensor([[0, 1, -1, 2], [0, 2, 1, 2], [0, 1, 1, 2]])
    got = ensemble_ambiguity(answers)
    assert (got.value, got.n) == (pytest.approx(1 / 3), 3)
    assert ensemble_ambiguity(torch.tensor([[-1], [0]])).reason == "every sample has an abstention"


def test_the_rashomon_set_is_within_the_tolerance() -> None:
    risks = [0.13, 0.10, 0.12, 0.30]
    assert rashomon_set(risks, 0.02) == [1, 2]
    assert rashomon_set(risks, 0.0) == [1]
    assert rashomon_set(risks, 0.0, baseline=0) == [0, 1, 2]
    with pytest.raises(ValueError, match="none may be NaN"):
        rashomon_set([0.1, float("nan")], 0.1)


def test_the_paired_test_is_mcnemars_and_keeps_what_it_cannot_tell_apart() -> None:
    make = torch.Generator().manual_seed(0)
    right = torch.rand(6, 400, generator=make) < torch.tensor([0.9, 0.9, 0.88, 0.85, 0.8, 0.6])[:, None]
    best = int(right.sum(1).argmax())
    kept = rashomon_set_by_test(right)
    assert kept[0] == best
    for m in range(6):
        lost, won = int((right[best] & ~right[m]).sum()), int((~right[best] & right[m]).sum())
        p = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
        assert (m in kept) == (m == best or p > 0.05)
    assert 5 not in kept
    assert rashomon_set_by_test(right[:1].expand(3, -1)) == [0, 1, 2]

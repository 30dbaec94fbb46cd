from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dp.accounting import GaussianEvent, LedgerEntry, PrivacyLedger
from lightning_dp.errors import PrivacyConfigError, PrivacyError

EVENTS = [GaussianEvent(1.0, 0.1), GaussianEvent(2.0, 0.1), GaussianEvent(0.5, 1.0, "shuffle")]
charges = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(1, 9)), max_size=6)
#: Charges on four ledgers with merges in between, so that segments overlap in every way.
histories = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3), st.sampled_from(EVENTS), st.integers(1, 9)),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
    ),
    max_size=14,
)


def counts(ledger: PrivacyLedger) -> Counter[GaussianEvent]:
    return Counter({entry.event: entry.steps for entry in ledger.entries})


def from_states(*states: dict[str, Any]) -> PrivacyLedger:
    ledger = PrivacyLedger()
    for state in states:
        ledger.merge(state)
    return ledger


def play(history: list[Any]) -> list[dict[str, Any]]:
    ledgers = [PrivacyLedger() for _ in range(4)]
    for act in history:
        if len(act) == 3:
            ledgers[act[0]].charge(act[1], act[2])
        else:
            ledgers[act[0]].merge(ledgers[act[1]].state_dict())
    return [ledger.state_dict() for ledger in ledgers]


@settings(max_examples=60)
@given(charges)
def test_charges_add_up_by_event(acts: list[tuple[GaussianEvent, int]]) -> None:
    ledger, truth = PrivacyLedger(), Counter[GaussianEvent]()
    for event, steps in acts:
        ledger.charge(event, steps)
        truth[event] += steps
    assert counts(ledger) == truth
    assert ledger.steps == sum(truth.values())
    assert [e.event for e in ledger.entries] == list(dict.fromkeys(event for event, _ in acts))


@settings(max_examples=60)
@given(histories)
def test_merge_is_commutative_associative_idempotent_and_monotone(history: list[Any]) -> None:
    a, b, c, _ = play(history)
    once = counts(from_states(a, b, c))
    assert once == counts(from_states(c, a, b)) == counts(from_states(b, a, c, a, b))
    assert once == counts(from_states(from_states(b, c).state_dict(), a))
    for state in (a, b, c):
        assert all(once[event] >= steps for event, steps in counts(from_states(state)).items())


@settings(max_examples=60)
@given(histories)
def test_every_charge_is_counted_exactly_once_after_all_merges(history: list[Any]) -> None:
    truth = Counter[GaussianEvent]()
    for act in history:
        if len(act) == 3:
            truth[act[1]] += act[2]
    assert counts(from_states(*play(history))) == truth


def test_an_old_checkpoint_does_not_erase_later_steps() -> None:
    ledger = PrivacyLedger()
    ledger.charge(EVENTS[0], 5)
    old = ledger.state_dict()
    ledger.charge(EVENTS[0], 5)
    ledger.merge(old)
    assert ledger.steps == 10


def test_k_steps_save_load_k_steps_is_2k_steps() -> None:
    first, resumed, straight = PrivacyLedger(), PrivacyLedger(), PrivacyLedger()
    first.charge(EVENTS[0], 7)
    resumed.merge(first.state_dict())
    resumed.charge(EVENTS[0], 7)
    straight.charge(EVENTS[0], 14)
    assert resumed.entries == straight.entries


def test_two_runs_resumed_from_one_checkpoint_add_up() -> None:
    start, left, right = PrivacyLedger(), PrivacyLedger(), PrivacyLedger()
    start.charge(EVENTS[0], 10)
    for run in (left, right):
        run.merge(start.state_dict())
        run.charge(EVENTS[0], 3)
    left.merge(right.state_dict())
    assert left.steps == 16


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_spends_on_its_own_account(copied: Any) -> None:
    ledger = PrivacyLedger()
    ledger.charge(EVENTS[0], 10)
    twin = copied(ledger)
    ledger.charge(EVENTS[0], 3)
    twin.charge(EVENTS[0], 4)
    ledger.merge(twin.state_dict())
    assert ledger.steps == 17


def test_ranks_that_share_a_segment_are_one_expense() -> None:
    name = "0123456789abcdef" * 2
    ranks = [PrivacyLedger(name), PrivacyLedger(name)]
    for rank in ranks:
        rank.charge(EVENTS[0], 4)
    ranks[0].merge(ranks[1].state_dict())
    assert ranks[0].steps == 4
    with pytest.raises(PrivacyConfigError, match="hexadecimal"):
        PrivacyLedger("rank 0")


def test_the_state_is_plain_and_survives_json_and_pickle() -> None:
    ledger = PrivacyLedger()
    for event in EVENTS:
        ledger.charge(event, 3)

    def plain(value: Any) -> bool:
        if type(value) is dict:
            return all(type(k) is str and plain(v) for k, v in value.items())
        return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float)

    state = ledger.state_dict()
    assert plain(state)
    assert from_states(json.loads(json.dumps(state))).entries == ledger.entries
    assert pickle.loads(pickle.dumps(ledger)).entries == ledger.entries


def test_changing_a_saved_state_does_not_change_the_ledger() -> None:
    ledger = PrivacyLedger()
    ledger.charge(EVENTS[0], 3)
    ledger.state_dict()["segments"].clear()
    assert ledger.steps == 3


OWNER = "ab" * 16


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"version": 1},
        {"version": 2, "segments": {}},
        {"version": 1, "segments": []},
        {"version": 1, "segments": {"me": [[1.0, 0.1, "poisson", 1]]}},
        {"version": 1, "segments": {OWNER: [[1.0, 0.1, "poisson"]]}},
        {"version": 1, "segments": {OWNER: [[1.0, 0.1, "poisson", -5]]}},
        {"version": 1, "segments": {OWNER: [[1.0, 0.1, "poisson", 1.5]]}},
        {"version": 1, "segments": {OWNER: [[1.0, 0.1, "shuffle", 1]]}},
        {"version": 1, "segments": {OWNER: [[float("nan"), 0.1, "poisson", 1]]}},
        {"version": 1, "segments": {"cd" * 16: [[1.0, 0.1, "poisson", 9]], OWNER: 3}},
    ],
)
def test_a_malformed_state_is_refused_and_nothing_of_it_kept(state: Any) -> None:
    ledger = PrivacyLedger()
    ledger.charge(EVENTS[0], 2)
    before = ledger.state_dict()
    with pytest.raises(PrivacyError, match="ledger"):
        ledger.merge(state)
    assert ledger.state_dict() == before


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "3", None])
def test_only_whole_positive_steps_can_be_charged(steps: Any) -> None:
    with pytest.raises(PrivacyConfigError, match="steps"):
        PrivacyLedger().charge(EVENTS[0], steps)
    with pytest.raises(PrivacyConfigError, match="steps"):
        LedgerEntry(EVENTS[0], steps)


def test_only_events_can_be_charged() -> None:
    with pytest.raises(PrivacyConfigError, match="GaussianEvent"):
        PrivacyLedger().charge((1.0, 0.1))  # type: ignore[arg-type]

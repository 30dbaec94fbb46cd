"""The append-only record of what has been spent."""

from __future__ import annotations

import copy
import operator
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_dp.accounting.events import Event, GaussianEvent, RandomizedResponseEvent, Relation
from lightning_dp.errors import PrivacyConfigError, PrivacyError

__all__ = ("LedgerEntry", "PrivacyLedger", "gaussian_steps", "merge_entries", "relation_of")

_VERSION = 1
RESPONSE, RELEASE = "randomized_response", "release"
#: What an event has beside noise and rate, by its sampling.
_MORE = {"truncated_poisson": ("tail",), "balls_in_bins": ("bins",)}


@dataclass(frozen=True)
class LedgerEntry:
    """``steps`` compositions of one event.

    Raises:
        PrivacyConfigError: If ``steps`` is not a whole number of at least 1.
    """

    event: Event
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _whole(self.steps))


def merge_entries(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Add up equal events, in order of first appearance; composition does not depend on the order."""
    counts: dict[Event, int] = {}
    for entry in entries:
        counts[entry.event] = counts.get(entry.event, 0) + entry.steps
    return tuple(LedgerEntry(event, steps) for event, steps in counts.items())


def gaussian_steps(entries: Iterable[LedgerEntry]) -> list[tuple[GaussianEvent, int]]:
    """Events and steps of Gaussian entries. What knows no other mechanism goes through here, and not round it.

    Raises:
        PrivacyError: If there is an entry of another kind, which would else be left out of the count.
    """
    found = []
    for entry in entries:
        if not isinstance(entry.event, GaussianEvent):
            raise PrivacyError(f"{type(entry.event).__name__} is no Gaussian mechanism and is composed apart.")
        found.append((entry.event, entry.steps))
    return found


def relation_of(entries: Iterable[LedgerEntry]) -> Relation | None:
    """The neighbouring relation that all entries have; None where there are none.

    Raises:
        PrivacyError: If they have different ones. Neither their eps nor their deltas add up: under add-or-remove-one a
            record is taken away, under replace-one it becomes another.
    """
    relations = sorted({entry.event.relation for entry in entries})
    if len(relations) > 1:
        raise PrivacyError(
            f"the ledger would hold events of different neighbouring relations ({' and '.join(relations)}), which do not "
            "compose to one eps. Account all of them under one: relation='add_or_remove_one' for a release beside DP-SGD."
        )
    return relations[0] if relations else None


class PrivacyLedger:
    """What has been spent, over every run that led to this model.

    The guarantee: nothing lowers an entry. The ledger is a grow-only map *segment -> event -> steps*. Each
    instance charges only the segment it owns; :meth:`merge` takes, per segment and event, the larger count.
    That makes merging commutative, associative, idempotent and monotone: an old checkpoint cannot erase later
    steps, loading it twice charges nothing twice, and two runs branched off one checkpoint add up when they
    meet. All events of a ledger have one neighbouring relation; one of another is refused, before anything is recorded.

    Args:
        segment: Name of the own segment, 32 hexadecimal digits; a fresh random one by default. Give one name
            to all ranks of a run, whose identical charges are one expense, and never to anything else.
    """

    def __init__(self, segment: str | None = None) -> None:
        if segment is not None and not _is_segment_id(segment):
            raise PrivacyConfigError(
                f"segment must be 32 lower-case hexadecimal digits, got {segment!r}: leave it out."
            )
        self._own = segment if segment is not None else uuid.uuid4().hex
        self._segments: dict[str, dict[Event, int]] = {}

    @property
    def segment(self) -> str:
        """Name of the own segment, the one that :meth:`charge` adds to."""
        return self._own

    def charge(self, event: Event, steps: int = 1) -> None:
        """Record ``steps`` compositions of ``event``; call it before the private number exists.

        A crash in between then over-counts, and never under-counts.
        """
        if not isinstance(event, (GaussianEvent, RandomizedResponseEvent)):
            raise PrivacyConfigError(
                f"only a GaussianEvent or a RandomizedResponseEvent can be charged, got {type(event).__name__}."
            )
        self._check_relation(event)
        own = self._segments.setdefault(self._own, {})
        own[event] = own.get(event, 0) + _whole(steps)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Everything spent, equal events of all segments added up, in order of first appearance."""
        return merge_entries(
            LedgerEntry(event, steps) for history in self._segments.values() for event, steps in history.items()
        )

    @property
    def steps(self) -> int:
        """Compositions over all entries."""
        return sum(steps for history in self._segments.values() for steps in history.values())

    def state_dict(self) -> dict[str, Any]:
        """Plain strings, numbers, lists and dicts, so that a weights-only checkpoint can carry it."""
        return {
            "version": _VERSION,
            "segments": {
                name: [_row(event, steps) for event, steps in history.items()]
                for name, history in self._segments.items()
            },
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take over whatever ``state`` knows to have been spent and this ledger does not.

        Raises:
            PrivacyError: If the state is malformed, or of another neighbouring relation; the ledger is then unchanged.
        """
        segments = _parse(state)
        for event in {event for history in segments.values() for event in history}:
            self._check_relation(event)
        for name, history in segments.items():
            mine = self._segments.setdefault(name, {})
            for event, steps in history.items():
                mine[event] = max(mine.get(event, 0), steps)

    def _check_relation(self, event: Event) -> None:
        """One relation for all: it is enough to look at one event that is there."""
        known = next((e for history in self._segments.values() for e in history), event)
        relation_of([LedgerEntry(known, 1), LedgerEntry(event, 1)])

    def __deepcopy__(self, memo: dict[int, Any]) -> PrivacyLedger:
        # A copy lives its own life: with the same segment, the two runs' charges would hide one another in a
        # merge.
        twin = PrivacyLedger()
        twin._segments = copy.deepcopy(self._segments, memo)
        return twin

    def __copy__(self) -> PrivacyLedger:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"PrivacyLedger(steps={self.steps}, entries={len(self.entries)}, segments={len(self._segments)})"


def _row(event: Event, steps: int) -> list[Any]:
    """Four values for a step under add-or-remove-one, and more or others for anything else.

    What knows of no cut draws, no passes, no other relation and no randomised labels then refuses the row.
    """
    if isinstance(event, RandomizedResponseEvent):
        return [RESPONSE, event.eps, event.num_classes, event.relation, steps]
    if event.sampling == "none":
        return [RELEASE, event.noise_multiplier, event.relation, steps]
    more = [getattr(event, name) for name in _MORE.get(event.sampling, ())]
    return [event.noise_multiplier, event.sample_rate, event.sampling, steps, *more]


def _event(row: Any) -> tuple[Event, Any]:
    """What :func:`_row` wrote; ValueError for anything else."""
    if row[0] == RESPONSE:
        _, eps, num_classes, relation, steps = row
        return RandomizedResponseEvent(eps, num_classes, relation), steps
    if row[0] == RELEASE:
        _, sigma, relation, steps = row
        return GaussianEvent(sigma, sampling="none", relation=relation), steps
    sigma, rate, sampling, steps, *more = row
    # A cut draw without its tail would be an under-count.
    names = _MORE.get(sampling, ())
    if len(more) != len(names):
        raise ValueError("an entry of unknown form")
    return GaussianEvent(sigma, rate, sampling, **dict(zip(names, more, strict=True))), steps


def _whole(steps: Any) -> int:
    try:
        if isinstance(steps, bool):
            raise TypeError
        whole = operator.index(steps)
    except TypeError:
        raise PrivacyConfigError(f"steps must be a whole number, got {steps!r}.") from None
    if whole < 1:
        # A negative charge would lower what has been spent.
        raise PrivacyConfigError(f"steps must be at least 1, got {whole}: a ledger only grows.")
    return whole


def _is_segment_id(name: Any) -> bool:
    return isinstance(name, str) and len(name) == 32 and all(c in "0123456789abcdef" for c in name)


def _parse(state: Any) -> dict[str, dict[Event, int]]:
    """Read a whole state before anything is merged: half a ledger would be an under-count."""
    try:
        version, segments = state["version"], state["segments"]
        if version != _VERSION:
            raise ValueError(f"version {version!r} instead of {_VERSION}")
        parsed: dict[str, dict[Event, int]] = {}
        for name, history in segments.items():
            if not _is_segment_id(name):
                raise ValueError(f"segment name {name!r}")
            counts: dict[Event, int] = {}
            parsed[name] = counts
            for row in history:
                event, steps = _event(row)
                counts[event] = counts.get(event, 0) + _whole(steps)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise PrivacyError(
            f"The saved privacy ledger cannot be read ({type(error).__name__}: {error}), "
            "so what it has spent is unknown. Restore an intact checkpoint; "
            "do not train on with an empty ledger."
        ) from error
    return parsed

"""The append-only record of what has been spent."""

from __future__ import annotations

import copy
import operator
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_dp.accounting.events import GaussianEvent
from lightning_dp.errors import PrivacyConfigError, PrivacyError

__all__ = ("LedgerEntry", "PrivacyLedger", "gaussian_steps", "merge_entries")

_VERSION = 1


@dataclass(frozen=True)
class LedgerEntry:
    """``steps`` compositions of one event.

    Raises:
        PrivacyConfigError: If ``steps`` is not a whole number of at least 1.
    """

    event: GaussianEvent
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _whole(self.steps))


def merge_entries(entries: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Add up equal events, in order of first appearance; composition does not depend on the order."""
    counts: dict[GaussianEvent, int] = {}
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


class PrivacyLedger:
    """What has been spent, over every run that led to this model.

    The guarantee: nothing lowers an entry. The ledger is a grow-only map *segment -> event -> steps*. Each
    instance charges only the segment it owns; :meth:`merge` takes, per segment and event, the larger count.
    That makes merging commutative, associative, idempotent and monotone: an old checkpoint cannot erase later
    steps, loading it twice charges nothing twice, and two runs branched off one checkpoint add up when they
    meet.

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
        self._segments: dict[str, dict[GaussianEvent, int]] = {}

    @property
    def segment(self) -> str:
        """Name of the own segment, the one that :meth:`charge` adds to."""
        return self._own

    def charge(self, event: GaussianEvent, steps: int = 1) -> None:
        """Record ``steps`` compositions of ``event``; call it before the private number exists.

        A crash in between then over-counts, and never under-counts.
        """
        if not isinstance(event, GaussianEvent):
            raise PrivacyConfigError(f"only a GaussianEvent can be charged, got {type(event).__name__}.")
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
            PrivacyError: If the state is malformed; the ledger is then unchanged.
        """
        segments = _parse(state)
        for name, history in segments.items():
            mine = self._segments.setdefault(name, {})
            for event, steps in history.items():
                mine[event] = max(mine.get(event, 0), steps)

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


def _row(event: GaussianEvent, steps: int) -> list[Any]:
    """Four values, and a fifth where draws are cut, so that what knows of no cut draws refuses the row."""
    tail = [event.tail] if event.sampling == "truncated_poisson" else []
    return [event.noise_multiplier, event.sample_rate, event.sampling, steps, *tail]


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


def _parse(state: Any) -> dict[str, dict[GaussianEvent, int]]:
    """Read a whole state before anything is merged: half a ledger would be an under-count."""
    try:
        version, segments = state["version"], state["segments"]
        if version != _VERSION:
            raise ValueError(f"version {version!r} instead of {_VERSION}")
        parsed: dict[str, dict[GaussianEvent, int]] = {}
        for name, history in segments.items():
            if not _is_segment_id(name):
                raise ValueError(f"segment name {name!r}")
            counts: dict[GaussianEvent, int] = {}
            parsed[name] = counts
            for sigma, rate, sampling, steps, *tail in history:
                # A cut draw without its tail would be an under-count.
                if len(tail) != int(sampling == "truncated_poisson"):
                    raise ValueError("an entry of unknown form")
                event = GaussianEvent(sigma, rate, sampling, *tail)
                counts[event] = counts.get(event, 0) + _whole(steps)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise PrivacyError(
            f"The saved privacy ledger cannot be read ({type(error).__name__}: {error}), "
            "so what it has spent is unknown. Restore an intact checkpoint; "
            "do not train on with an empty ledger."
        ) from error
    return parsed

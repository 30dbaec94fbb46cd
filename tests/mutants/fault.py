"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("Edit", "Mutant", "mutant")


@dataclass(frozen=True)
class Edit:
    """Text to replace."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One fault: its edits, and the tests of which at least one must fail."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    fast: bool = False


def mutant(name: str, file: str, old: str, new: str, *tests: str, fast: bool = False) -> Mutant:
    """A fault of one edit."""
    return Mutant(name, (Edit(file, old, new),), tests, fast)

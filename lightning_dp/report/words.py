"""The report's sentences: what the numbers say, for a reader who decides and does not program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_dp.accounting.spent import rounded_up

__all__ = ("assumptions", "glossary", "membership_sentences", "number", "percent", "verdict")

_RELATIONS = {
    "add_or_remove_one": "whether or not the record of any one {unit} was in the training data at all",
    "replace_one": "which of two records any one {unit} contributed to the training data",
}


def number(value: Any) -> str:
    """A cell of a table: four digits, a dash for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(probability: float | None) -> str:
    """A probability as a percentage, rounded up: it is a bound."""
    if probability is None:
        return "\N{EN DASH}"
    if probability >= 1.0:
        return "100 %"
    digits = 1 if probability >= 0.01 else max(1, 1 - math.floor(math.log10(max(probability, 1e-9) * 100)))
    scale = 10.0**digits
    return f"{min(100.0, math.ceil(probability * 100 * scale - 1e-9) / scale):.{digits}f} %"


def unit_of(guarantee: Mapping[str, Any]) -> str:
    """Whose record is protected: a sample, or what the ids name."""
    return "sample" if guarantee["unit"] == "sample" else f"unit ({guarantee['unit']})"


def verdict(document: Mapping[str, Any]) -> list[str]:
    """The first paragraph: is there a guarantee, and what does it say?"""
    guarantee = document["guarantee"]
    if guarantee is None:
        return [
            "This model was trained without differential privacy. Nothing bounds what it, or anything computed from it, "
            "reveals about a person in the training data (eps is infinite). Treat the model as personal data."
        ]
    if not document["private"]:
        return [
            "This model was trained with a privacy mechanism whose noise is zero or too small to count: eps is infinite, and "
            "there is no guarantee. Treat the model as personal data."
        ]
    what = _RELATIONS.get(guarantee["relation"], "a change of any one {unit}'s record").format(unit=unit_of(guarantee))
    eps, factor = guarantee["eps"], math.exp(min(guarantee["eps"], 700.0))
    multiple = f"{rounded_up(factor)} times" if factor < 1e6 else "more than a million times"
    return [
        f"eps = {rounded_up(eps)} at delta = {guarantee['delta']:.3g}: whatever is computed from the released model hardly "
        f"depends on {what}. Anything an outsider could see is at most {multiple} more likely with one of the two than "
        f"with the other, except for a part of probability {guarantee['delta']:.3g}.",
        "The statement holds whatever else the outsider knows, now or later, and for everything that is done with the model "
        "afterwards. It is a bound: real attacks usually do worse.",
    ]


def membership_sentences(document: Mapping[str, Any]) -> list[str]:
    """What the guarantee means for the question: was this person in?"""
    found = document["membership"]
    if found is None:
        return [
            "Without differential privacy nothing bounds how surely an attacker can tell who was in the training data."
        ]
    at = next(row for row in found["at"] if row["fpr"] == 0.01)
    return [
        "An attacker may try to find out whether a person was in the training data. Even one that knows all other records and "
        f"every number of the training finds at most {percent(at['tpr'])} of the members if it may accuse 1 % of the others "
        "wrongly. Guessing finds 1 %.",
        f"Over all ways to weigh the two errors, the share of members found exceeds the share of false accusations by at most "
        f"{percent(found['advantage'])}.",
    ]


def assumptions(document: Mapping[str, Any]) -> list[str]:
    """What must be true for the guarantee to hold."""
    guarantee = document["guarantee"]
    if guarantee is None:
        return []
    unit = unit_of(guarantee)
    found = [
        f"One {unit} is what is protected. A person who contributed several of them is protected less, unless the unit is the "
        "person.",
        f"The number of records (n = {guarantee['dataset_size']}) and all settings below are treated as public.",
        "The random numbers behind noise and sampling are kept secret, and the software did what it says.",
    ]
    if "poisson" in str(guarantee["sampling"]):
        found.append(
            "Which records took part in which training step is kept secret; part of the protection comes from that."
        )
    if guarantee.get("post_processing"):
        found.append(
            f"Parameters declared to see no private data ({guarantee['post_processing']}) indeed saw none: this is the "
            "trainer's declaration."
        )
    return found


def glossary() -> list[tuple[str, str]]:
    """One line for each term."""
    return [
        (
            "eps",
            "how much more likely an outcome can become by one record, on a logarithmic scale; 0 is perfect privacy",
        ),
        ("delta", "the probability with which the bound by eps may fail; it should be far below 1/n"),
        ("membership attack", "the attempt to find out whether a certain record was in the training data"),
        ("reconstruction", "the attempt to recover a record itself; kappa is the chance of a blind guess"),
        ("worst case", "an attacker that knows everything but the one record, and sees every step of the training"),
        ("noise multiplier", "how large the noise is, compared with the most that one record can change a step"),
        ("accountant", "the method that adds up the privacy spent by all steps"),
    ]

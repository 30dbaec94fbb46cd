"""The report's sentences: what the numbers say, for a reader who decides and does not program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_dp.accounting.spent import rounded_up

__all__ = (
    "assumptions",
    "bound",
    "chance",
    "glossary",
    "limits",
    "membership_sentences",
    "number",
    "percent",
    "one_in",
    "settings_rows",
    "warnings",
    "verdict",
)

LARGE_EPS = 10.0
"""From here on one record may change the odds of an outcome by more than twenty thousand, and the page says so."""
_SETTINGS_LEFT_OUT = ("sentence", "eps", "delta", "eps_budget", "risk")

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


def bound(value: float | None) -> str:
    """An upper bound in four digits, rounded up; ``None`` is how the document holds infinity."""
    return "infinite" if value is None or math.isinf(value) else rounded_up(value)


def percent(probability: float | None) -> str:
    """A probability as a percentage, rounded up: it is a bound."""
    if probability is None:
        return "\N{EN DASH}"
    if probability >= 1.0 or probability == 0.0:
        return "100 %" if probability else "0 %"
    digits = 1 if probability >= 0.01 else max(1, 1 - math.floor(math.log10(max(probability, 1e-8) * 100)))
    scale = 10.0**digits
    # The factor keeps a number like 0.001, which is a little more than itself in binary, from being rounded up.
    shown = max(1, math.ceil(probability * 100 * scale * (1.0 - 1e-12))) / scale
    return f"{min(100.0, shown):.{digits}f} %"


def chance(probability: float) -> str:
    """An attacker's chance in a table: a number too small to be computed is not shown as impossible."""
    return percent(probability) if probability else "below 0.0000001 %"


def one_in(probability: float) -> str:
    """A small probability as 1 in so many, two digits, rounded towards the larger probability."""
    times = 1.0 / probability
    digit = 10 ** max(0, math.floor(math.log10(times)) - 1)
    return f"1 in {math.floor(times * (1.0 + 1e-12)) // digit * digit:,}".replace(",", "\N{THIN SPACE}")


def settings_rows(guarantee: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The public facts of a run for a table, eps and delta first and rounded up."""
    rows = [("eps", bound(guarantee["eps"])), ("delta", bound(guarantee["delta"]))]
    return rows + [
        (key.replace("_", " "), number(value))
        for key, value in guarantee.items()
        if key not in _SETTINGS_LEFT_OUT and value is not None
    ]


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
    eps, delta = guarantee["eps"], guarantee["delta"]
    # exp(eps) beyond a million is written as a power, so that no rounding makes it smaller than it is.
    multiple = f"{bound(math.exp(eps))} times" if eps < math.log(1e6) else f"e to the power {bound(eps)} times"
    return [
        f"eps = {bound(eps)} at delta = {bound(delta)}: how far anything computed from the released model can depend on {what} "
        f"is limited. Whatever an outsider could see is at most {multiple} as likely with one of the two as with the other, "
        f"except for a part of probability delta, which is about {one_in(delta)}.",
        "The statement holds whatever else the outsider knows, now or later, and for everything that is done with the model "
        "afterwards. It is a bound for the strongest attack; attacks known today usually reach less, which nothing guarantees.",
        *warnings(document),
    ]


def warnings(document: Mapping[str, Any]) -> list[str]:
    """What makes a guarantee one in name only; for a run that has a guarantee."""
    if not document["private"]:
        return []
    guarantee = document["guarantee"]
    eps, delta, n = guarantee["eps"], guarantee["delta"], guarantee["dataset_size"]
    found = []
    if not guarantee["labels_covered"]:
        found.append(
            "Beware: the guarantee holds for the inputs alone. Labels (diagnoses, outcomes) were used without protection, and "
            "the model may reveal them."
        )
    if eps > LARGE_EPS:
        found.append(
            f"Beware: an eps above {LARGE_EPS:g} is large, and guarantees little by itself. Judge by the bounds on attacks "
            "below."
        )
    if delta * n >= 1.0:
        found.append(
            f"Beware: delta is not below 1/n = {1 / n:.3g}. A mechanism that publishes the record of one person picked at "
            "random can satisfy such a guarantee; it should not be relied on."
        )
    return found


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
        "Nothing else that shaped the model was computed from the same records: initial weights, normalisation, the choice of "
        "features or of settings.",
    ]
    if guarantee["sampling"] not in ("shuffle", "none"):  # those claim no amplification
        found.append(
            "Which records took part in which training step is kept secret; part of the protection comes from that."
        )
    if guarantee.get("post_processing"):
        found.append(
            f"Parameters declared to see no private data ({guarantee['post_processing']}) indeed saw none: this is the "
            "trainer's declaration."
        )
    return found


def limits() -> list[str]:
    """What a reader may wrongly take a guarantee to mean."""
    return [
        "That the model is right, or right for everyone: see utility, calibration and fairness.",
        "That nothing can be learnt about people: what is true of everybody with a certain trait is learnt with or without any "
        "one of them.",
        "Anything about groups at the same strength: for k records that change together, such as a family's, eps is k times as "
        "large, and delta grows even faster.",
        "Anything about data outside the training set: validation and test people, and everyone the model is used on.",
    ]


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

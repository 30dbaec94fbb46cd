"""The population that a test set is drawn from: as many fresh patients as wanted, with or without the planted unfairness.

What a model does to a group is a fact about the model and this population, and a test set tells it with an error. Where
patients can be drawn at will the fact itself is known, and it can be asked how often an interval holds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.chest_xray.observer import FaintFindings
from lightning_dp.data.chest_xray.simulator import simulate
from lightning_dp.data.chest_xray.tables import ATTRIBUTES, Visits, finding_visits

__all__ = ("amounts", "draw_population", "draw_visits", "treated")


def treated(levels: NDArray[np.int64], faint: FaintFindings) -> NDArray[np.bool_]:
    """Who is in the group whose findings are faint."""
    column = levels[:, list(ATTRIBUTES).index(faint.attribute)]
    found: NDArray[np.bool_] = column == ATTRIBUTES[faint.attribute].index(faint.level)
    return found


def amounts(visits: Visits, unfairness: FaintFindings | None, rng: np.random.Generator) -> NDArray[np.float32]:
    """How strongly each finding is drawn, ``(n, findings)``: 0 without it, else 1, or the faint contrast.

    It draws as many numbers whatever the unfairness, so that everything drawn later is the same with it and without.
    """
    found: NDArray[np.float32] = visits.labels.copy()
    draw = rng.random(found.shape)
    if unfairness is not None:
        found[treated(visits.levels, unfairness)[:, None] & (draw < unfairness.share)] *= unfairness.contrast
    return found


def draw_visits(table: Visits, n: int, rng: np.random.Generator, with_finding: float | None = 0.5) -> Visits:
    """Draws patients with replacement, and one visit of each, distributed as the one picture of a test patient.

    Args:
        table: all visits.
        n: number of patients.
        rng: source of randomness.
        with_finding: chance of a patient who has a finding at some visit, of whom a visit with a finding is then drawn;
            ``None`` draws any patient and any of their visits.

    Returns:
        One row for each; patients are numbered anew, since the same one may be drawn again.
    """
    visits, ill = finding_visits(table)
    people, of_row = np.unique(table.patient, return_inverse=True)
    if with_finding is None:
        pools = [(np.ones(len(table), dtype=bool), np.arange(len(people)), n)]
    else:
        number = int(rng.binomial(n, with_finding))
        pools = [(visits, np.flatnonzero(ill), number), (~visits, np.flatnonzero(~ill), n - number)]
    rows = []
    for allowed, pool, count in pools:
        order = np.flatnonzero(allowed)
        order = order[np.argsort(of_row[order], kind="stable")]
        start = np.searchsorted(of_row[order], pool)
        number_of = np.searchsorted(of_row[order], pool, side="right") - start
        chosen = rng.integers(0, len(pool), count) if count else np.zeros(0, dtype=np.int64)
        rows.append(order[start[chosen] + rng.integers(0, number_of[chosen])])
    found = table.rows(rng.permutation(np.concatenate(rows)))
    return Visits(np.arange(n), found.sex, found.age, found.labels)


def draw_population(
    table: Visits,
    masks: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    n: int,
    image_size: int,
    noise: float,
    unfairness: FaintFindings | None,
    with_finding: float | None,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Fresh patients with one picture each: ``inputs``, ``labels``, ``levels`` and ``amount``.

    With one seed the patients, their anatomy and the noise are the same whatever the unfairness: the difference between two
    such populations is the unfairness and nothing else.

    Args:
        table: all visits.
        masks: all lungs.
        chosen: numbers of the masks to use.
        n: number of patients.
        image_size: pixels a side.
        noise: standard deviation of the white noise.
        unfairness: what is planted.
        with_finding: as for :func:`draw_visits`.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, 72])
    visits = draw_visits(table, n, rng, with_finding)
    amount = amounts(visits, unfairness, rng)
    pictures = simulate(
        masks, rng.choice(chosen, n), visits.patient, amount, image_size, noise, int(rng.integers(2**31))
    )
    return {"inputs": pictures.images, "labels": visits.labels, "levels": visits.levels, "amount": amount}

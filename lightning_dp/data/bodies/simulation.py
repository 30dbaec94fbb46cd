"""Simulated adult bodies with visceral and subcutaneous fat volumes, and the best R2 that anybody can reach on them.

The equations are this project's own, chosen to be simple, and are no model of physiology:

1. Sex is a fair coin. Age, muscle, weight, height, proportions, stomach tone, central and peripheral fatness and two widths
   of the frame come from a Gaussian copula with the correlations of ``CORRELATIONS``.
2. A body model turns them into a surface. The *lean* body has weight, central and peripheral fatness at 0 and all else equal.
3. Fat ``F = V_trunk(body) - V_trunk(lean body)``, the trunks cut from the surfaces and closed by a flat lid on either end.
4. Visceral share ``r = 0.1 + 0.7 sigmoid(-0.9 + 1.2 male + 1.2 (age - 52.5) / 27.5 - 0.6 tone) + u``, with ``u`` uniform and
   of standard deviation ``SHARE_SD``: what no shape tells.
5. ``VAT = r F``, ``ASAT = (1 - r) F``, in litres.

Given all parameters, VAT and ASAT both have the variance ``SHARE_SD^2 F^2``. No function of the shape, which is one of the
parameters, can have a smaller expected squared error than its mean, so that R2 is at most ``1 - SHARE_SD^2 E[F^2] / Var``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from lightning_dp.data.bodies.surfaces import open_edges, signed_volume
from lightning_dp.data.cache import progress

__all__ = (
    "CORRELATIONS",
    "SHARE_SD",
    "TARGETS",
    "BodyModel",
    "draw_parameters",
    "ellipsoid_bodies",
    "fat_volumes",
    "r2_ceiling",
    "simulate",
    "trunk_lids",
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Parameters = dict[str, Floats]

TARGETS = ("vat", "asat")
#: Standard deviation of the visceral share given the whole body.
SHARE_SD = 0.05
DENSITY = 980.0  # kg per cubic metre, for the body mass index of the baseline
LATENT = (
    *("age", "muscle", "weight", "height", "proportions", "tone"),
    *("central", "peripheral", "frame_width", "frame_depth"),
)
CORRELATIONS = {
    ("age", "weight"): 0.2,
    ("age", "muscle"): -0.3,
    ("age", "tone"): -0.3,
    ("age", "central"): 0.2,
    ("muscle", "tone"): 0.3,
    ("weight", "central"): 0.5,
    ("weight", "peripheral"): 0.4,
    ("frame_width", "frame_depth"): 0.5,
}


@dataclass(frozen=True)
class BodyModel:
    """A public map from parameters to surfaces of one topology.

    Attributes:
        name: Its name, for the cache.
        vertices: Positions ``(n, V, 3)`` in metres, z upwards, of ``n`` sets of parameters.
        faces: Triangles of every surface.
        template: The surface of a middling body, ``(V, 3)``.
        trunk: Which triangles belong to the trunk.
        waist: Numbers of the vertices round the waist, in order.
    """

    name: str
    vertices: Callable[[Parameters], Floats]
    faces: Ints
    template: Floats
    trunk: NDArray[np.bool_]
    waist: Ints


def draw_parameters(n: int, rng: np.random.Generator) -> Parameters:
    """Parameters of ``n`` adults.

    ``male`` is 0 or 1, ``age`` in years (25 to 80), ``height`` and the frame in standard deviations, ``tone`` in [-1, 1], and
    the others in [0, 1].
    """
    covariance = np.eye(len(LATENT))
    for (a, b), value in CORRELATIONS.items():
        i, j = LATENT.index(a), LATENT.index(b)
        covariance[i, j] = covariance[j, i] = value
    z = rng.multivariate_normal(np.zeros(len(LATENT)), covariance, n, method="cholesky")
    normal = dict(zip(LATENT, z.T, strict=True))
    uniform = {name: ndtr(value) for name, value in normal.items()}
    return {
        "male": rng.integers(0, 2, n).astype(np.float64),
        "age": 25 + 55 * uniform["age"],
        **{name: uniform[name] for name in ("muscle", "weight", "proportions", "central", "peripheral")},
        "tone": 2 * uniform["tone"] - 1,
        **{name: np.clip(normal[name], -3, 3) for name in ("height", "frame_width", "frame_depth")},
    }


def lean(parameters: Parameters) -> Parameters:
    """The same people without what counts as fat."""
    nothing = np.zeros_like(parameters["weight"])
    return {**parameters, "weight": nothing, "central": nothing, "peripheral": nothing}


def fat_volumes(fat: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    """VAT and ASAT in litres, ``(n, 2)``, from the fat of the trunk (equations 4 and 5 of the module)."""
    logit = -0.9 + 1.2 * parameters["male"] + 1.2 * (parameters["age"] - 52.5) / 27.5 - 0.6 * parameters["tone"]
    half = SHARE_SD * np.sqrt(3)  # 0.087: the share stays between 0.01 and 0.89
    share = 0.1 + 0.7 / (1 + np.exp(-logit)) + rng.uniform(-half, half, len(fat))
    return np.stack([share * fat, (1 - share) * fat], axis=1)


def r2_ceiling(fat: Floats, volumes: Floats) -> Floats:
    """The highest R2 that knowledge of all parameters allows, for each target: ``1 - SHARE_SD^2 mean(F^2) / Var``."""
    ceiling: Floats = 1 - SHARE_SD**2 * np.mean(fat**2) / volumes.var(0)
    return ceiling


def trunk_lids(faces: Ints) -> list[Ints]:
    """The border loops of a piece of a closed surface, each as vertex numbers in the order in which a lid passes them.

    Raises:
        ValueError: The borders are no simple loops.
    """
    pairs = open_edges(faces)[:, ::-1]  # a lid passes a border edge the other way
    following = dict(pairs.tolist())
    if len(following) != len(pairs):
        raise ValueError("a border of the trunk touches itself: choose the trunk's triangles differently")
    loops = []
    while following:
        start, at = next(iter(following.items()))
        del following[start]
        loop = [start]
        while at != start:
            loop.append(at)
            at = following.pop(at)
        loops.append(np.asarray(loop))
    return loops


def trunk_volume(vertices: Floats, faces: Ints, loops: list[Ints]) -> Floats:
    """Volumes ``(n,)`` in litres of the piece that ``faces`` cut from bodies ``(n, V, 3)``, closed by fans of triangles."""
    closed, corners = [faces], [vertices]
    count = vertices.shape[1]
    for loop in loops:
        corners.append(vertices[:, loop].mean(1, keepdims=True))
        closed.append(np.stack([loop, np.roll(loop, -1), np.full(len(loop), count)], axis=1))
        count += 1
    litres: Floats = 1000 * signed_volume(np.concatenate(corners, axis=1), np.concatenate(closed))
    return litres


def simulate(
    model: BodyModel, n: int, seed: int, reduce: Callable[[Floats], Floats], block: int = 128
) -> dict[str, NDArray[Any]]:
    """Draw bodies and what belongs to them.

    Args:
        model: Makes the surfaces.
        n: Number of bodies.
        seed: Seed of everything random.
        reduce: Applied to the positions ``(m, V, 3)`` before they are kept (decimation).
        block: Bodies made at a time.

    Returns:
        ``vertices`` float32 ``(n, v, 3)``; ``targets`` ``(n, 2)`` in litres; ``anthropometry`` ``(n, 2)``: body mass index in
        kg/m^2 and waist in metres; ``covariates`` ``(n, 2)``: 1 for male, and age in years; ``ceiling`` ``(2,)``.
    """
    rng = np.random.default_rng(seed)
    everybody = draw_parameters(n, rng)
    piece = model.faces[model.trunk]
    loops = trunk_lids(piece)
    kept, fat, anthropometry = [], [], []
    for start in progress(range(0, n, block), f"{model.name} bodies"):
        some = {name: value[start : start + block] for name, value in everybody.items()}
        body = model.vertices(some)
        fat.append(trunk_volume(body, piece, loops) - trunk_volume(model.vertices(lean(some)), piece, loops))
        waist = np.linalg.norm(body[:, model.waist] - body[:, np.roll(model.waist, 1)], axis=-1).sum(-1)
        mass = DENSITY * signed_volume(body, model.faces)
        anthropometry.append(np.stack([mass / np.ptp(body[..., 2], axis=1) ** 2, waist], axis=1))
        kept.append(reduce(body).astype(np.float32))
    total = np.concatenate(fat)
    targets = fat_volumes(total, everybody, rng)
    return {
        "vertices": np.concatenate(kept),
        "targets": targets.astype(np.float32),
        "anthropometry": np.concatenate(anthropometry).astype(np.float32),
        "covariates": np.stack([everybody["male"], everybody["age"]], axis=1).astype(np.float32),
        "ceiling": r2_ceiling(total, targets),
    }


def ellipsoid_bodies(rings: int = 24, segments: int = 32) -> BodyModel:
    """Ellipsoids deformed by the parameters: torsos without limbs, for where anny is not installed.

    Args:
        rings: Circles of vertices between the two poles; an odd number would put one on the waist, an even one beside it.
        segments: Vertices of a circle.
    """
    polar = np.pi * np.arange(1, rings + 1) / (rings + 1)
    angle = 2 * np.pi * np.arange(segments) / segments
    theta, phi = np.meshgrid(polar, angle, indexing="ij")
    circle = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    unit = np.concatenate([circle.reshape(-1, 3), [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    at = np.arange(rings * segments).reshape(rings, segments)
    right = np.roll(at, -1, axis=1)
    a, b, c, d = at[:-1], right[:-1], at[1:], right[1:]
    north, south = np.full(segments, rings * segments), np.full(segments, rings * segments + 1)
    faces = np.concatenate(
        [np.stack(triangle, axis=-1).reshape(-1, 3) for triangle in ((a, c, b), (b, c, d))]
        + [np.stack([north, at[0], right[0]], axis=1), np.stack([south, right[-1], at[-1]], axis=1)]
    )
    middle = unit[faces][..., 2].mean(1)

    def vertices(of: Parameters) -> Floats:
        p = {name: value[:, None] for name, value in of.items()}
        x, y, z = unit.T
        front, belly = np.clip(-y, 0, None), np.exp(-(((z + 0.1) / 0.35) ** 2))
        hips, shoulders = np.exp(-(((z + 0.55) / 0.25) ** 2)), np.exp(-(((z - 0.5) / 0.3) ** 2))
        old = (p["age"] - 52.5) / 27.5
        fat = 0.03 * p["weight"]
        wide = 0.15 + 0.006 * p["frame_width"] + fat + 0.02 * p["muscle"] * shoulders + 0.035 * p["peripheral"] * hips
        wide = wide + (2 * p["male"] - 1) * (0.012 * shoulders - 0.012 * hips)
        deep = 0.10 + 0.005 * p["frame_depth"] + fat + 0.02 * p["peripheral"] * hips
        deep = deep + front * belly * (0.05 * p["central"] - 0.012 * p["tone"]) + 0.006 * old * shoulders * (y > 0) * y
        tall = 0.33 + 0.012 * p["height"] + 0.015 * p["male"] + 0.01 * (p["proportions"] - 0.5)
        return np.stack([wide * x, deep * y, tall * z], axis=-1)

    middling = {name: np.full(1, 0.5) for name in ("male", "muscle", "weight", "proportions", "central", "peripheral")}
    middling |= {"age": np.full(1, 52.5)} | {
        name: np.zeros(1) for name in ("tone", "height", "frame_width", "frame_depth")
    }
    waist = at[rings // 2]
    return BodyModel("ellipsoid", vertices, faces, vertices(middling)[0], np.abs(middle) < 0.75, waist)

"""Drawn trays: pictures of food on a textured ground, turned, scaled, hiding one another, by day and by night."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_dp.data.cache import progress
from lightning_dp.data.emoji import read_emoji
from lightning_dp.data.food.classes import FOOD_CLASSES
from lightning_dp.data.food.composition import deal
from lightning_dp.errors import PrivacyConfigError

__all__ = ("Scenes", "food_sprites", "make_scenes")

_AT_ONCE = 500  # scenes; bounds memory
_SIDE = (0.26, 0.42)  # of a picture, in parts of the scene's side
_TURN = np.pi / 7
_CANVAS = 0.6  # holds the largest picture at any turn
_TRIES = 12  # places that are tried for an object
_MOST_HIDDEN = 0.35  # of an object, by one other, if a place allows it


class Scenes(NamedTuple):
    """Drawn images with their objects.

    Attributes:
        images: RGB, uint8 ``(n, size, size, 3)``.
        boxes: x1, y1, x2, y2 in whole pixels, float32 ``(n, M, 4)``; 0 where nothing is.
        labels: Places in `FOOD_CLASSES`, int64 ``(n, M)``; -1 where nothing is.
        night: 1 for a dark scene of little saturation, int64 ``(n,)``.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    night: NDArray[np.int64]


def food_sprites(vendor: str, root: str | Path | None = None) -> NDArray[np.uint8]:
    """The pictures that stand for the fifteen classes, RGBA, uint8 ``(15, 64, 64, 4)``.

    Args:
        vendor: Of the emoji package, ``"google"`` or ``"twitter"``.
        root: Where the package is, see `lightning_dp.data.emoji.find_emoji`.

    Raises:
        FileNotFoundError: The package is not there, or lacks one of the pictures.
    """
    emoji = read_emoji(vendor, root)
    names = emoji.short_name.tolist()
    missing = [one.emoji for one in FOOD_CLASSES if one.emoji not in names]
    if missing:
        raise FileNotFoundError(f"emoji-datasource-{vendor} has no {', '.join(missing)}: take version 16.0.0.")
    return emoji.images[[names.index(one.emoji) for one in FOOD_CLASSES]]


def make_scenes(
    sprites: NDArray[np.uint8],
    n: int,
    size: int = 64,
    max_boxes: int = 12,
    night_fraction: float = 0.5,
    seed: int | tuple[int, ...] = 0,
) -> Scenes:
    """Draw ``n`` scenes with the Oktoberfest Food Dataset's counts of images and boxes, scaled to n.

    A box is the extent of the whole object, hidden parts included, and lies within the scene.

    Args:
        sprites: RGBA, uint8 ``(15, s, s, 4)``, one a class.
        n: Number of scenes, 10 or more.
        size: Side of a scene in pixels.
        max_boxes: M, most objects of a scene.
        night_fraction: Part of the scenes that are dark and of little saturation.
        seed: The scenes are a function of it and of the other arguments.

    Raises:
        PrivacyConfigError: Sprites of another shape, or a fraction outside [0, 1].
    """
    if sprites.ndim != 4 or len(sprites) != len(FOOD_CLASSES) or sprites.shape[3] != 4 or sprites.dtype != np.uint8:
        raise PrivacyConfigError(
            f"sprites must be RGBA, uint8 ({len(FOOD_CLASSES)}, s, s, 4), got {sprites.dtype} {sprites.shape}."
        )
    if not 0.0 <= night_fraction <= 1.0:
        raise PrivacyConfigError(f"night_fraction={night_fraction} must lie in [0, 1].")
    rng = np.random.default_rng(seed)
    counts = deal(n, max_boxes, rng)
    night = np.zeros(n, dtype=np.int64)
    night[rng.permutation(n)[: round(n * night_fraction)]] = 1
    prepared = _premultiplied(sprites, size)
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    boxes = np.zeros((n, max_boxes, 4), dtype=np.float32)
    labels = np.full((n, max_boxes), -1, dtype=np.int64)
    for start in progress(range(0, n, _AT_ONCE), "food scenes"):
        part = slice(start, min(start + _AT_ONCE, n))
        scenes = _grounds(part.stop - start, size, rng)
        _fill(scenes, counts[part], boxes[part], labels[part], prepared, rng)
        images[part] = _lit(scenes, night[part], rng)
    return Scenes(images, boxes, labels, night)


def _premultiplied(sprites: NDArray[np.uint8], size: int) -> Tensor:
    """Colours times opacity, and opacity, ``(15, 4, canvas, canvas)``: so that edges mix with the ground and not with black."""
    rgba = torch.from_numpy(sprites).permute(0, 3, 1, 2).float() / 255.0
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    side = round(_CANVAS * size)
    return F.interpolate(rgba, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _grounds(n: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Table tops: a colour, blotches of two sizes and the grain of planks, ``(n, 3, size, size)`` in [0, 1]."""
    colour = np.array([0.55, 0.45, 0.33]) + rng.normal(0, 0.08, (n, 1)) + rng.normal(0, 0.05, (n, 3))
    ground = torch.from_numpy(colour.astype(np.float32))[:, :, None, None].repeat(1, 1, size, size)
    for cells, channels, strength in ((4, 1, 0.08), (4, 3, 0.04), (size // 4, 1, 0.05)):
        noise = torch.from_numpy(rng.normal(0, strength, (n, channels, cells, cells)).astype(np.float32))
        ground += F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    angle, pitch, phase = rng.uniform(0, np.pi, n), rng.uniform(4, 12, n), rng.uniform(0, 2 * np.pi, n)
    y, x = np.mgrid[:size, :size] * (64 / size)
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    grain = 0.05 * np.sin(2 * np.pi * across / pitch[:, None, None] + phase[:, None, None])
    found: NDArray[np.float32] = (ground.numpy() + grain[:, None].astype(np.float32)).clip(0, 1)
    return found


def _turned(
    prepared: Tensor, labels: NDArray[np.int64], sides: NDArray[np.float64], turns: NDArray[np.float64]
) -> Tensor:
    """Each object's picture at its size and turn, ``(k, 4, canvas, canvas)``."""
    factor = prepared.shape[-1] / sides
    cos, sin, zero = factor * np.cos(turns), factor * np.sin(turns), np.zeros_like(turns)
    theta = torch.from_numpy(np.stack([np.stack([cos, -sin, zero], 1), np.stack([sin, cos, zero], 1)], 1)).float()
    pictures = prepared[torch.from_numpy(labels)]
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _fill(
    scenes: NDArray[np.float32],
    counts: NDArray[np.int64],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    prepared: Tensor,
    rng: np.random.Generator,
) -> None:
    """Paste the objects of each scene, and note where they are; writes into its arguments."""
    size = scenes.shape[-1]
    image, label = counts.nonzero()
    times = counts[image, label]
    owner, what = np.repeat(image, times), np.repeat(label, times)
    crowd = np.minimum(1.0, np.sqrt(5.0 / counts.sum(1)))[owner]  # many objects are small objects
    sides = size * rng.uniform(*_SIDE, len(owner)) * crowd
    pictures = _turned(prepared, what, sides, rng.uniform(-_TURN, _TURN, len(owner))).numpy()
    solid = pictures[:, 3] > 0.5
    for scene in range(len(scenes)):
        mine = rng.permutation(np.flatnonzero(owner == scene))
        for place, k in enumerate(mine):
            rows, columns = np.flatnonzero(solid[k].any(1)), np.flatnonzero(solid[k].any(0))
            if not len(rows):
                raise PrivacyConfigError(
                    f"the sprite of class {what[k]} is transparent: give pictures with an opaque part."
                )
            top, left, height, width = rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
            x, y = _free_place(boxes[scene, :place], width, height, size, rng)
            cut = pictures[k, :, top : top + height, left : left + width]
            seen = scenes[scene, :, y : y + height, x : x + width]
            seen[...] = seen * (1.0 - cut[3]) + cut[:3]
            boxes[scene, place] = x, y, x + width, y + height
            labels[scene, place] = what[k]


def _free_place(
    there: NDArray[np.float32], width: int, height: int, size: int, rng: np.random.Generator
) -> tuple[int, int]:
    """A corner at which the new object hides little of the others, if a few tries find one."""
    x = rng.integers(0, size - width + 1, _TRIES)
    y = rng.integers(0, size - height + 1, _TRIES)
    wide = np.minimum(there[:, None, 2], x + width) - np.maximum(there[:, None, 0], x)
    high = np.minimum(there[:, None, 3], y + height) - np.maximum(there[:, None, 1], y)
    area = (there[:, 2] - there[:, 0]) * (there[:, 3] - there[:, 1])
    hidden = (wide.clip(0) * high.clip(0) / np.minimum(area[:, None], width * height)).max(0, initial=0.0)
    best = int(np.argmax(hidden <= _MOST_HIDDEN)) if (hidden <= _MOST_HIDDEN).any() else int(hidden.argmin())
    return int(x[best]), int(y[best])


def _lit(scenes: NDArray[np.float32], night: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera's picture: darker and greyer at night, with its noise."""
    dark = night[:, None, None, None] == 1
    colour = np.where(dark, rng.uniform(0.15, 0.4, (len(scenes), 1, 1, 1)), 1.0).astype(np.float32)
    light = np.where(
        dark, rng.uniform(0.35, 0.7, (len(scenes), 1, 1, 1)), rng.uniform(0.85, 1.1, (len(scenes), 1, 1, 1))
    )
    grey = scenes.mean(1, keepdims=True)
    seen = (grey + (scenes - grey) * colour) * light.astype(np.float32)
    seen += rng.normal(0, 0.02, scenes.shape).astype(np.float32)
    found: NDArray[np.uint8] = np.rint(seen.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return found

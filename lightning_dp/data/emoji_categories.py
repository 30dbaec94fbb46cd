"""Categories of emoji from their pictures: a colour data set that can be had without a download site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.card import DataCard
from lightning_dp.data.emoji import SIZE, VENDORS, EmojiImages, read_emoji
from lightning_dp.data.pictures import PictureDataset
from lightning_dp.data.splits import stratified_split
from lightning_dp.errors import PrivacyConfigError

__all__ = ("EmojiDataModule", "identities")


class EmojiDataModule(ArrayDataModule):
    """Colour pictures of emoji in nine categories, as a **stand-in for CIFAR-10**: drawn, not photographed, and few.

    The classes are the categories of the Unicode list in alphabetical order. "Component" (five skin tones and hair styles,
    which are no pictures of anything) is left out; no other is rare enough for that (the smallest, Activities, has 85
    code points, the largest, People & Body, 386).

    The privacy unit is a **code point** with all its pictures: skin tones and vendors. Ids of the units are in the train
    set's ``unit_id``, and ``DPStrategy(unit="unit_id")`` protects them; without it, single pictures are protected. Some
    code points have the very same picture (the flags of France and of Clipperton Island; most families of one vendor);
    these are one unit, so that no picture is on both sides of a split.

    Args:
        root: where the npm packages are, see :func:`~lightning_dp.data.emoji.find_emoji`.
        batch_size: batch size of the train loader; under a private strategy the expected number B of units (or pictures).
        size: side of the pictures: 64, or 32 or 16 by averaging.
        vendors: whose pictures are trained on (and validated).
        test_vendors: whose pictures are tested on; None: the same. ``("google",)`` for training and ``("twitter",)`` for
            testing is a distribution shift, on code points that were not trained on either.
        tones: whether skin tones take part in training. They are five times as many pictures of People & Body, and no
            further units; validation and test are without them, so that they do not drown the other classes.
        background: ``"white"``, or ``"random"`` for a flat colour of its own for each picture (by the seed).
        augment: random shifts and mirror images in training, see :class:`~lightning_dp.data.pictures.PictureDataset`.
        test_fraction: share of the units that is tested on, stratified by category.
        val_fraction: share of the units that is held out for validation.
        seed: seed of the split and of the backgrounds.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.

    Shape:
        Batches ``(pictures, labels)``: float32 ``(N, 3, size, size)`` in [-1, 1], int64 ``(N,)``.

    Raises:
        PrivacyConfigError: an unknown option.
        FileNotFoundError: in ``prepare_data``, if a package is not there; the message says how to get it.
    """

    num_classes = 9
    card = DataCard(
        name="Emoji categories (stand-in for CIFAR-10: drawn pictures of Noto and Twemoji)",
        licence="Noto Emoji Apache-2.0, Twemoji CC BY 4.0; lists and packaging MIT",
        n=1496,
        real=False,
        unit="one code point, with all its skin tones and vendors",
        source="npm packages emoji-datasource-google and emoji-datasource-twitter 16.0.0",
    )

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 256,
        size: Literal[64, 32, 16] = 32,
        vendors: Sequence[str] = VENDORS,
        test_vendors: Sequence[str] | None = None,
        tones: bool = False,
        background: Literal["white", "random"] = "white",
        augment: bool = False,
        test_fraction: float = 0.2,
        val_fraction: float = 0.0,
        seed: int = 0,
        eval_batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        if size not in (64, 32, 16):
            raise PrivacyConfigError(f"size={size!r}: the pictures have 64 pixels; choose 64, 32 or 16.")
        if background not in ("white", "random"):
            raise PrivacyConfigError(f"background={background!r} is unknown; choose 'white' or 'random'.")
        if not (0 < test_fraction < 1 and 0 <= val_fraction < 1 - test_fraction):
            raise PrivacyConfigError(
                f"test_fraction={test_fraction}, val_fraction={val_fraction}: both are shares of the units that leave some to "
                "train on; give for example 0.2 and 0."
            )
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=val_fraction > 0)
        self.root, self.size, self.tones, self.background = root, size, tones, background
        self.vendors, self.test_vendors = tuple(vendors), tuple(test_vendors or vendors)
        self.augment, self.test_fraction, self.val_fraction, self.seed = augment, test_fraction, val_fraction, seed

    @override
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        every = tuple(dict.fromkeys((*self.vendors, *self.test_vendors)))
        emoji = read_emoji(every, self.root)
        units = identities(emoji)  # of all, before any is left out: skin tones too tell which code points are one
        plain = emoji.code_point == emoji.base
        known = (emoji.category != "Component") & (plain | self.tones)
        categories, labels = np.unique(emoji.category[known], return_inverse=True)
        if len(categories) > self.num_classes:
            raise ValueError(f"the packages have {len(categories)} categories, {categories}; nine were expected.")
        units, plain, vendor = units[known], plain[known], emoji.vendor[known]
        pictures = _flat(emoji.images[known], self.size, self.background, self.seed)
        part_of = self._parts(units, labels)
        found: dict[str, NDArray[Any]] = {}
        for number, part in enumerate(("train", "val", "test")):
            chosen = (part_of[units] == number) & np.isin(vendor, self.test_vendors if part == "test" else self.vendors)
            if part != "train" or not self.tones:
                chosen &= plain
            if chosen.any():
                found |= {f"{part}/inputs": pictures[chosen], f"{part}/labels": labels[chosen].astype(np.int64)}
                found[f"{part}/unit_id"] = units[chosen]
        return found

    def _parts(self, units: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """0, 1 or 2 by unit id: train, validation, test."""
        ids, first = np.unique(units, return_index=True)
        rest, test = stratified_split(labels[first], round(self.test_fraction * len(ids)), self.seed)
        kept, val = stratified_split(labels[first][rest], round(self.val_fraction * len(ids)), self.seed + 1)
        parts = np.full(int(units.max()) + 1, 2)
        parts[ids[rest[kept]]], parts[ids[rest[val]]] = 0, 1
        return parts

    @override
    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> PictureDataset:
        return PictureDataset(columns, unit_id, augment=self.augment and part == "train")


def identities(emoji: EmojiImages) -> NDArray[np.int64]:
    """A number ``(n,)`` for each picture: the same for pictures of one code point, and for pictures that are equal.

    Equality is carried over: if A's picture is B's, and another of B is C's, all three are one.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for base, image in zip(emoji.base, emoji.images, strict=True):
        one, other = root(str(base)), root("=" + blake2b(image.tobytes(), digest_size=16).hexdigest())
        parent[other] = one
    _, numbers = np.unique([root(str(base)) for base in emoji.base], return_inverse=True)
    return numbers.astype(np.int64)


def _flat(rgba: NDArray[np.uint8], size: int, background: str, seed: int) -> NDArray[np.uint8]:
    """Pictures on a flat background, averaged down: uint8 ``(n, 3, size, size)``."""
    colours = np.full((len(rgba), 3), 255.0, np.float32)
    if background == "random":
        colours = np.random.default_rng(seed).uniform(0, 255, colours.shape).astype(np.float32)
    found = np.empty((len(rgba), 3, size, size), np.uint8)
    step = SIZE // size
    for start in range(0, len(rgba), 512):  # a few at a time: the floats take four times the memory of the bytes
        part = rgba[start : start + 512].astype(np.float32)
        alpha = part[..., 3:] / 255
        mixed = alpha * part[..., :3] + (1 - alpha) * colours[start : start + 512, None, None]
        averaged = mixed.reshape(-1, size, step, size, step, 3).mean((2, 4))
        found[start : start + 512] = np.rint(averaged).transpose(0, 3, 1, 2)
    return found

"""The two data modules: the real images by their folder, and drawn scenes in the same form."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_dp.data.arrays import ArrayDataModule, ArrayDataset
from lightning_dp.data.cache import generate_once, progress
from lightning_dp.data.card import DataCard
from lightning_dp.data.food.classes import FOOD_CLASSES, NUM_IMAGES, NUM_TEST
from lightning_dp.data.food.labels import LabelledImage, read_food_labels, write_food_labels
from lightning_dp.data.food.saturation import normalise_saturation
from lightning_dp.data.food.scenes import food_sprites, make_scenes
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.detection import check_targets, pad_targets
from lightning_dp.optional import require

__all__ = ("FoodScenesDataModule", "OktoberfestFoodDataModule", "PixelDataset")

_DRAWING = 1  # to be raised when the scenes change
_PARTS = ("train", "val", "test")


class PixelDataset(ArrayDataset):
    """Samples whose first array is RGB, uint8 ``(H, W, 3)``, given as float32 ``(3, H, W)`` in [0, 1]."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, *others = super().__getitem__(index)
        return (image.permute(2, 0, 1).to(torch.float32).div_(255.0), *others)


class _FoodDataModule(ArrayDataModule):
    """What both have in common: pixels kept as bytes, and boxes."""

    num_classes = len(FOOD_CLASSES)
    class_names = tuple(one.name for one in FOOD_CLASSES)

    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> ArrayDataset:
        """A part's images as floats."""
        return PixelDataset(columns, unit_id)


class FoodScenesDataModule(_FoodDataModule):
    """**Stand-in** for the Oktoberfest Food Dataset: scenes drawn with emoji, with its classes and their counts.

    2.43 objects an image and the real numbers of images and boxes of each class, scaled to the number of scenes. Half of the
    scenes are night: dark, with little saturation. Every scene is drawn by itself, so that no part knows another, but all
    parts share the fifteen pictures of a vendor; with ``test_vendor="twitter"`` the test scenes use another artist's, which
    nobody trained on. What a detector reaches here says nothing about the real images.

    Args:
        root: Where the packages ``emoji-datasource-google`` (and ``-twitter``) of npm are, see
            `lightning_dp.data.emoji.find_emoji`.
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B.
        size: Side of a scene in pixels, divisible by 8.
        n_train: Training scenes. The real data set has 1,024, too few for a detector trained privately from nothing.
        n_val: Validation scenes; 0 for none.
        n_test: Test scenes.
        night_fraction: Part of the *training* scenes that are night. Half of the others are, always.
        test_vendor: Whose pictures the test scenes show, ``"google"`` or ``"twitter"``; all others show Google's.
        saturation: Whether the saturation of every image is brought to a mean of 114 of 255.
        max_boxes: M, places for objects in an image.
        seed: Of the drawing.
        eval_batch_size: Batch size of the validation and test loaders.
        num_workers: Worker processes of the loaders.

    Shape:
        Batches ``(images, boxes, labels, night)``: float32 ``(N, 3, size, size)`` in [0, 1]; float32 ``(N, M, 4)``, x1, y1,
        x2, y2 in pixels; int64 ``(N, M)``, -1 where nothing is; int64 ``(N,)``, 1 for night.
    """

    columns = ("images", "boxes", "labels", "night")
    card = DataCard(
        name="food scenes (stand-in for the Oktoberfest Food Dataset)",
        licence="drawn with Noto Emoji (Apache-2.0) and, for a shifted test, Twemoji (CC BY 4.0)",
        n=8000,
        real=False,
        unit="one image",
        source="emoji-datasource-google and -twitter 16.0.0 on procedural grounds; counts of arXiv 1912.05007",
    )

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 256,
        size: int = 64,
        n_train: int = 8000,
        n_val: int = 500,
        n_test: int = 1000,
        night_fraction: float = 0.5,
        test_vendor: str = "google",
        saturation: bool = False,
        max_boxes: int = 12,
        seed: int = 0,
        eval_batch_size: int = 250,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if size % 8:
            raise PrivacyConfigError(f"size={size}: the detector's grid needs a side divisible by 8, such as 64 or 96.")
        self.root, self.size, self.night_fraction, self.test_vendor = root, size, night_fraction, test_vendor
        self.numbers = dict(zip(_PARTS, (n_train, n_val, n_test), strict=True))
        self.saturation, self.max_boxes, self.seed = saturation, max_boxes, seed

    def sprites(self, vendor: str) -> NDArray[np.uint8]:
        """The pictures of the classes, RGBA, uint8 ``(15, 64, 64, 4)``; override it to draw with others."""
        return food_sprites(vendor, self.root)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Draw the parts, or find them drawn."""
        found = {}
        for number, part in enumerate(_PARTS):
            if self.numbers[part]:
                for name, array in self._part(number, part).items():
                    found[f"{part}/{name}"] = array
                if self.saturation:
                    found[f"{part}/images"] = normalise_saturation(found[f"{part}/images"])
        return found

    def _part(self, number: int, part: str) -> dict[str, NDArray[Any]]:
        sprites = self.sprites(self.test_vendor if part == "test" else "google")
        n, seed = self.numbers[part], (self.seed, number)
        night = self.night_fraction if part == "train" else 0.5
        facts = {
            "sprites": blake2b(sprites.tobytes(), digest_size=16).hexdigest(),
            "n": n,
            "size": self.size,
            "max_boxes": self.max_boxes,
            "night_fraction": night,
            "seed": list(seed),
            "drawing": _DRAWING,
        }
        return generate_once(
            f"food-{part}",
            facts,
            lambda: make_scenes(sprites, n, self.size, self.max_boxes, night, seed)._asdict(),
        )

    def write(self, folder: str | Path, part: str) -> None:
        """Write one part in the real data set's form: PNG images and ``files.txt``, as its reader takes them.

        Args:
            folder: Made if it is not there.
            part: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ModuleNotFoundError: pillow is not installed.
        """
        pillow = require("PIL.Image", "data", "Writing images")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = self._part(_PARTS.index(part), part)
        entries = []
        for i, (image, boxes, labels) in enumerate(
            zip(arrays["images"], arrays["boxes"], arrays["labels"], strict=True)
        ):
            there = labels >= 0
            entries.append(LabelledImage(f"{i:05}.png", labels[there], boxes[there]))
            pillow.fromarray(image).save(folder / entries[-1].name)
        write_food_labels(folder / "files.txt", entries)


class OktoberfestFoodDataModule(_FoodDataModule):
    """The real images: 1,110 of a beer tent's checkout, 2,696 boxes, 15 classes (Ziller et al. 2019, arXiv 1912.05007).

    Images are brought to ``size`` x ``size`` pixels, whatever their form, and their boxes with them.

    Args:
        root: A folder with label files ``files.txt`` beside their images, at any depth. Those below its folder ``test``, if
            there is one, are the test part, and the rest is trained on; else 86 images are held out by the seed.
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B.
        size: Side of the images in pixels, divisible by 8.
        val_size: Training images held out for validation.
        test_size: Images held out for the test if there is no folder ``test``.
        clip_boxes: Whether boxes that reach outside their image are cut at the border. If not they are refused by name.
        saturation: Whether the saturation of every image is brought to a mean of 114 of 255.
        max_boxes: M, places for objects in an image; a public constant.
        seed: Of the splits.
        eval_batch_size: Batch size of the validation and test loaders.
        num_workers: Worker processes of the loaders.

    Shape:
        Batches ``(images, boxes, labels)`` as those of `FoodScenesDataModule`.
    """

    columns = ("images", "boxes", "labels")
    card = DataCard(
        name="Oktoberfest Food Dataset",
        licence="that of its authors; not redistributed here",
        n=NUM_IMAGES - NUM_TEST,
        real=True,
        unit="one image",
        source="A. Ziller, J. Hansjakob et al., 2019, arXiv 1912.05007",
    )

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 128,
        size: int = 128,
        val_size: int = 0,
        test_size: int = NUM_TEST,
        clip_boxes: bool = False,
        saturation: bool = False,
        max_boxes: int = 20,
        seed: int = 0,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=val_size > 0)
        if size % 8:
            raise PrivacyConfigError(
                f"size={size}: the detector's grid needs a side divisible by 8, such as 128 or 320."
            )
        self.root, self.size, self.val_size, self.test_size = Path(root), size, val_size, test_size
        self.clip_boxes, self.saturation, self.max_boxes, self.seed = clip_boxes, saturation, max_boxes, seed

    def prepare_data(self) -> None:
        """Look whether the files are there; pixels are read in `setup`."""
        self._parts()

    def _parts(self) -> dict[str, list[tuple[Path, LabelledImage]]]:
        files = sorted(self.root.rglob("files.txt"))
        if not files:
            raise FileNotFoundError(f"there is no files.txt below {self.root}: give root= the folder of the data set.")
        test_folder = self.root / "test"
        entries = [(file.parent / one.name, one) for file in files for one in read_food_labels(file, self.num_classes)]
        test = [entry for entry in entries if test_folder in entry[0].parents]
        rest = [entry for entry in entries if test_folder not in entry[0].parents]
        self._check(entries)
        held_out = self.val_size + (0 if test else self.test_size)
        if held_out >= len(rest) or min(self.val_size, self.test_size) < 0:
            raise PrivacyConfigError(
                f"{len(rest)} images, of which val_size={self.val_size} and test_size={self.test_size} leave none to train on, "
                "or are below 0: choose fewer, and not below 0."
            )
        order = np.random.default_rng(self.seed).permutation(len(rest))
        val, after = order[: self.val_size], order[self.val_size :]
        if not test:
            test, after = [rest[i] for i in after[: self.test_size]], after[self.test_size :]
        return {"train": [rest[i] for i in sorted(after)], "val": [rest[i] for i in sorted(val)], "test": test}

    def _check(self, entries: list[tuple[Path, LabelledImage]]) -> None:
        """Look for what the label files cannot mean, before a picture is read."""
        seen: set[Path] = set()
        for path, one in entries:
            if not path.is_file():
                raise FileNotFoundError(
                    f"the label file beside it names {path}, which is not there: add the image, or take its line out."
                )
            if path.resolve() in seen:  # it would be two privacy units, and perhaps be trained and tested on
                raise ValueError(f"{path} has two lines in the label files: join them to one line with all boxes.")
            seen.add(path.resolve())
            if len(one.labels) > self.max_boxes:
                raise ValueError(
                    f"{path} has {len(one.labels)} boxes, there are places for {self.max_boxes}: raise max_boxes (it is "
                    "public, so give a bound that holds for any image), or leave the smallest boxes out."
                )

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Read all images."""
        found = {}
        for part, entries in self._parts().items():
            if entries:
                images, boxes = zip(*(self._read(*entry) for entry in progress(entries, f"{part} images")), strict=True)
                labels = [torch.from_numpy(one.labels) for _, one in entries]
                padded, padded_labels = pad_targets(boxes, labels, self.max_boxes)
                found[f"{part}/images"] = np.stack(images)
                found[f"{part}/boxes"], found[f"{part}/labels"] = padded.numpy(), padded_labels.numpy()
        return found

    def _read(self, path: Path, entry: LabelledImage) -> tuple[NDArray[np.uint8], Tensor]:
        pillow = require("PIL.Image", "data", "Reading the images")
        try:
            with pillow.open(path) as picture:
                width, height = picture.size
                pixels = np.asarray(picture.convert("RGB").resize((self.size, self.size), pillow.Resampling.BILINEAR))
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read as a picture ({error}). Replace it, or take its line out of the label file."
            ) from error
        boxes = torch.from_numpy(entry.boxes)
        advice = "Or give clip_boxes=True, if only the border is passed."
        if self.clip_boxes:
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=torch.float32))
            advice = "With clip_boxes=True that is a box which lies outside altogether: take it out of the label file."
        try:
            check_targets(boxes[None], torch.from_numpy(entry.labels)[None], self.num_classes, height, width)
        except ValueError as error:
            raise ValueError(f"{path}: {error} {advice}") from error
        boxes = boxes * (self.size / torch.tensor([width, height, width, height], dtype=torch.float32))
        return normalise_saturation(pixels) if self.saturation else pixels, boxes

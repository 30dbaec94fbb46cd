"""The label files of the Oktoberfest Food Dataset: ``name n (class x y w h) * n``, one image a line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ("LabelledImage", "read_food_labels", "write_food_labels")


@dataclass(frozen=True)
class LabelledImage:
    """An image's name and the objects in it.

    Attributes:
        name: File name, relative to the folder of the label file.
        labels: Classes, int64 ``(m,)``.
        boxes: x1, y1, x2, y2 in pixels, float32 ``(m, 4)``.
    """

    name: str
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]


def read_food_labels(path: str | Path, num_classes: int = 15) -> list[LabelledImage]:
    """Read a label file; x, y, w, h (upper left corner, width, height, as OpenCV has them) become x1, y1, x2, y2.

    Args:
        path: The file, ``files.txt`` in the data set.
        num_classes: Classes are numbered below it.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: A line does not have the form, naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no label file {path}: give the files.txt beside the images.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        try:
            count, values = int(words[1]), [int(word) for word in words[2:]]
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{where}: expected `name n` and 5 whole numbers (class x y w h) for each of n objects; a name has no "
                f"spaces. Got {line[:60]!r}."
            ) from error
        if count < 0 or len(values) != 5 * count:
            raise ValueError(
                f"{where}: {count} objects take {5 * count} numbers, there are {len(values)}. Correct n or the boxes."
            )
        table = np.array(values, dtype=np.int64).reshape(-1, 5)
        labels, corner, size = table[:, 0], table[:, 1:3], table[:, 3:]
        if count and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(f"{where}: classes {sorted(set(labels.tolist()))} must lie in 0 .. {num_classes - 1}.")
        if count and size.min() <= 0:
            raise ValueError(f"{where}: a box has no width or no height. Remove it, or correct w and h.")
        found.append(LabelledImage(words[0], labels, np.hstack([corner, corner + size]).astype(np.float32)))
    return found


def write_food_labels(path: str | Path, images: Iterable[LabelledImage]) -> None:
    """Write a label file that :func:`read_food_labels` reads back; corners are rounded to whole pixels.

    Raises:
        ValueError: A name is empty or has spaces, which the format cannot hold.
    """
    lines = []
    for image in images:
        if len(image.name.split()) != 1 or image.name != image.name.strip():
            raise ValueError(f"the format has no way to write the name {image.name!r}: rename the file without spaces.")
        corners = np.rint(image.boxes).astype(np.int64).reshape(-1, 4)
        numbers = np.column_stack([image.labels, corners[:, :2], corners[:, 2:] - corners[:, :2]])
        lines.append(" ".join([image.name, str(len(numbers)), *(str(value) for value in numbers.flatten())]))
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

"""PASCAL VOC annotations: one XML file an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from lightning_dp.data.food.labels import LabelledImage

__all__ = ("read_voc",)


def read_voc(path: str | Path, class_names: Sequence[str]) -> LabelledImage:
    """Read one annotation. VOC counts pixels from 1 and includes the last one; boxes here are edges counted from 0.

    Args:
        path: The XML file.
        class_names: Names in the order of their numbers.

    Raises:
        ValueError: The file is no such annotation, or names a class that is not listed.
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML file ({error}); expected a PASCAL VOC annotation.") from error
    numbers = {name: number for number, name in enumerate(class_names)}
    labels, boxes = [], []
    for item in root.iter("object"):
        name = (item.findtext("name") or "").strip()
        if name not in numbers:
            raise ValueError(f"{path} has an object {name!r}; the classes are {', '.join(class_names)}.")
        try:
            xmin, ymin, xmax, ymax = (float(item.findtext(f"bndbox/{key}") or "") for key in _CORNERS)
        except ValueError as error:
            raise ValueError(f"{path}: the box of {name!r} lacks one of {', '.join(_CORNERS)}.") from error
        labels.append(numbers[name])
        boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    return LabelledImage(
        root.findtext("filename") or path.stem,
        np.array(labels, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
    )


_CORNERS = ("xmin", "ymin", "xmax", "ymax")

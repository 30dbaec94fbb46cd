"""Reader for the IDX format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ("IMAGES_MAGIC", "LABELS_MAGIC", "read_idx")

IMAGES_MAGIC = 2051  # 0x00000803: unsigned bytes, three axes
LABELS_MAGIC = 2049  # 0x00000801: unsigned bytes, one axis


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzip-compressed if its name ends in ``.gz``.

    Args:
        path: The file.
        magic: Expected first four bytes, big-endian: ``IMAGES_MAGIC`` or ``LABELS_MAGIC``. The last byte is the number
            of axes.

    Returns:
        The array, uint8, a writable copy: ``(n, height, width)`` for images, ``(n,)`` for labels.

    Raises:
        ValueError: if the file is not gzip, has another magic number, or is shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}). Fetch it again.") from error
    axes = magic & 0xFF
    header = 4 * (1 + axes)
    if len(content) < header:
        raise ValueError(f"{path} holds {len(content)} bytes, less than an IDX header of {header}. Fetch it again.")
    found, *shape = struct.unpack(f">{1 + axes}I", content[:header])
    if found != magic:
        raise ValueError(
            f"{path} starts with the magic number {found}, expected {magic} "
            f"({'images' if magic == IMAGES_MAGIC else 'labels'}). Were the image and label files swapped?"
        )
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path} holds {len(content)} bytes, but its header announces shape {tuple(shape)}, "
            f"that is {expected} bytes. Fetch it again."
        )
    array: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
    return array

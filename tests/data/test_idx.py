"""The IDX reader against files written byte by byte."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.data.idx import IMAGES_MAGIC, LABELS_MAGIC, read_idx


def _bytes(magic: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + payload


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_images_in_row_major_order(tmp_path: Path, compressed: bool) -> None:
    content = _bytes(IMAGES_MAGIC, (2, 3, 4), bytes(range(24)))
    path = tmp_path / ("images.gz" if compressed else "images")
    path.write_bytes(gzip.compress(content) if compressed else content)
    array = read_idx(path, IMAGES_MAGIC)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    np.testing.assert_array_equal(array, np.arange(24).reshape(2, 3, 4))


def test_reads_labels(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(_bytes(LABELS_MAGIC, (3,), bytes([9, 0, 255])))
    np.testing.assert_array_equal(read_idx(tmp_path / "labels", LABELS_MAGIC), [9, 0, 255])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_bytes(LABELS_MAGIC, (1, 1, 1), b"\0"), "magic number 2049, expected 2051"),
        (_bytes(IMAGES_MAGIC, (2, 2, 2), bytes(7)), r"shape \(2, 2, 2\), that is 24 bytes"),
        (_bytes(IMAGES_MAGIC, (2, 2, 2), bytes(9)), r"shape \(2, 2, 2\), that is 24 bytes"),
        (b"\0\0\x08\x03", "less than an IDX header of 16"),
    ],
)
def test_refuses_what_the_header_does_not_announce(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "images", IMAGES_MAGIC)


def test_refuses_a_truncated_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(_bytes(IMAGES_MAGIC, (2, 2, 2), bytes(8)))[:-9])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        read_idx(tmp_path / "images.gz", IMAGES_MAGIC)


def test_refuses_a_file_that_is_no_gzip(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(b"plain")
    with pytest.raises(ValueError, match="not a complete gzip file"):
        read_idx(tmp_path / "images.gz", IMAGES_MAGIC)

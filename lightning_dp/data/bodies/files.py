"""Readers of triangle meshes in the OFF, OBJ and PLY formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_dp.data.bodies.surfaces import Surface
from lightning_dp.errors import PrivacyConfigError

__all__ = ("MESH_SUFFIXES", "read_mesh")

MESH_SUFFIXES = (".off", ".obj", ".ply")

_PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"},
    "float64": "f8",
}  # fmt: skip


def read_mesh(path: str | Path) -> Surface:
    """Read a mesh; polygons are split into triangles, and all but positions and faces is passed over.

    Args:
        path: A file ``.off`` or ``.obj`` (text), or ``.ply`` (text or binary).

    Raises:
        PrivacyConfigError: The format is another, or the file is damaged or has no faces; the message names the file.
    """
    path = Path(path)
    readers = {".off": _read_off, ".obj": _read_obj, ".ply": _read_ply}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PrivacyConfigError(f"{path}: meshes are read from {', '.join(MESH_SUFFIXES)} files; convert it to one.")
    try:
        vertices, polygons = reader(path.read_bytes())
        faces = np.asarray(_triangles(polygons), dtype=np.int64).reshape(-1, 3)
        return Surface(np.asarray(vertices, dtype=np.float64).reshape(-1, 3), faces)
    except (ValueError, IndexError, KeyError) as error:
        raise PrivacyConfigError(f"{path} cannot be read as a mesh: {error}") from error


def _triangles(polygons: Iterable[Sequence[int]]) -> list[tuple[int, int, int]]:
    return [(polygon[0], polygon[i], polygon[i + 1]) for polygon in polygons for i in range(1, len(polygon) - 1)]


def _read_off(content: bytes) -> tuple[Any, list[list[int]]]:
    lines = (line.split("#")[0] for line in content.decode("ascii", "replace").splitlines())
    rows = [row for row in (line.split() for line in lines) if row]
    if not rows or not rows[0][0].endswith("OFF"):
        raise ValueError("the first line is not OFF")
    head = rows[0][1:] or rows[1]
    body = rows[1 if rows[0][1:] else 2 :]
    n_vertices, n_faces = int(head[0]), int(head[1])
    if len(body) < n_vertices + n_faces:
        raise ValueError(f"it announces {n_vertices} vertices and {n_faces} faces and has {len(body)} lines")
    vertices = [[float(word) for word in row[:3]] for row in body[:n_vertices]]
    faces = [[int(word) for word in row[1 : 1 + int(row[0])]] for row in body[n_vertices : n_vertices + n_faces]]
    return vertices, faces


def _read_obj(content: bytes) -> tuple[Any, list[list[int]]]:
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in content.decode("utf-8", "replace").splitlines():
        row = line.split()
        if row[:1] == ["v"]:
            vertices.append([float(word) for word in row[1:4]])
        elif row[:1] == ["f"]:
            numbers = [int(word.split("/")[0]) for word in row[1:]]
            faces.append([n - 1 if n > 0 else len(vertices) + n for n in numbers])  # negative: counted from the end
    return vertices, faces


def _read_ply(content: bytes) -> tuple[Any, list[list[int]]]:
    head, found, body = content.partition(b"end_header")
    if not head.startswith(b"ply") or not found:
        raise ValueError("it has no PLY header")
    body = body[body.index(b"\n") + 1 :]
    form = ""
    elements: list[tuple[str, int, list[tuple[str, str, str | None]]]] = []  # properties: name, type, type of the count
    for row in (line.split() for line in head.decode("ascii", "replace").splitlines()):
        if row[:1] == ["format"]:
            form = row[1]
        elif row[:1] == ["element"]:
            elements.append((row[1], int(row[2]), []))
        elif row[:1] == ["property"]:
            is_list = row[1] == "list"
            elements[-1][2].append((row[-1], _PLY_TYPES[row[-2]], _PLY_TYPES[row[2]] if is_list else None))
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"unknown PLY format {form!r}")
    source = _Words(body) if form == "ascii" else _Bytes(body, "<" if form == "binary_little_endian" else ">")
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, count, properties in elements:
        tables[name] = [
            {
                key: source.take(kind, None if sized is None else int(source.take(sized)))
                for key, kind, sized in properties
            }
            for _ in range(count)
        ]
    vertices = [[row["x"], row["y"], row["z"]] for row in tables["vertex"]]
    faces = [
        list(row.get("vertex_indices", row.get("vertex_index", ()))) for row in tables.get("face", [])
    ]  # both names are in use
    return vertices, faces


class _Words:
    """The numbers of a text, one after the other."""

    def __init__(self, body: bytes) -> None:
        self._words, self._at = body.split(), 0

    def take(self, kind: str, count: int | None = None) -> Any:
        size = 1 if count is None else count
        words = self._words[self._at : self._at + size]
        if len(words) < size:
            raise ValueError("it ends too early")
        self._at += size
        values = [float(word) if kind[0] == "f" else int(word) for word in words]
        return values[0] if count is None else values


class _Bytes:
    """The numbers of a binary body, one after the other."""

    def __init__(self, body: bytes, order: str) -> None:
        self._body, self._order, self._at = body, order, 0

    def take(self, kind: str, count: int | None = None) -> Any:
        values = np.frombuffer(self._body, self._order + kind, 1 if count is None else count, self._at)
        self._at += values.nbytes
        return values[0].item() if count is None else values.tolist()

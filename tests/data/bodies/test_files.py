"""Readers of mesh files on hand-made ones, and a folder of three bodies as a user would make it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.data.bodies.files import read_mesh
from lightning_dp.data.bodies.folder import read_folder
from lightning_dp.data.bodies.surfaces import signed_volume
from lightning_dp.errors import PrivacyConfigError

CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def off(scale: float = 1.0, skip: int = 0) -> str:
    corners = "\n".join(" ".join(str(scale * v) for v in corner) for corner in CORNERS)
    squares = "\n".join("4 " + " ".join(map(str, square)) for square in SQUARES[skip:])
    return f"OFF\n# a cube\n8 {6 - skip} 0\n{corners}\n{squares}\n"


def obj() -> str:
    corners = "\n".join("v " + " ".join(map(str, corner)) for corner in CORNERS)
    squares = [" ".join(f"{i + 1}/1/1" for i in square) for square in SQUARES[:-1]]
    last = " ".join(str(i - 8) for i in SQUARES[-1])  # counted from the end
    return corners + "\nvn 0 0 1\n" + "\n".join(f"f {square}" for square in [*squares, last]) + "\n"


def ply(form: str) -> bytes:
    head = (
        f"ply\nformat {form} 1.0\ncomment made by hand\nelement vertex 8\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nelement face 6\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    if form == "ascii":
        rows = [" ".join(map(str, corner)) + " 255" for corner in CORNERS]
        return head + "\n".join(rows + ["4 " + " ".join(map(str, s)) for s in SQUARES]).encode() + b"\n"
    order = "<" if form == "binary_little_endian" else ">"
    body = b"".join(struct.pack(f"{order}fffB", *corner, 255) for corner in CORNERS)
    return head + body + b"".join(struct.pack(f"{order}B4i", 4, *square) for square in SQUARES)


@pytest.mark.parametrize(
    "name, content",
    [
        ("cube.off", off().encode()),
        ("cube.OFF", off().replace("OFF\n# a cube\n8", "OFF 8").encode()),
        ("cube.obj", obj().encode()),
        *((f"{form}.ply", ply(form)) for form in ("ascii", "binary_little_endian", "binary_big_endian")),
    ],
)
def test_every_format_gives_the_unit_cube(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    mesh = read_mesh(tmp_path / name)
    assert mesh.vertices.tolist() == [list(map(float, corner)) for corner in CORNERS]
    assert len(mesh.faces) == 12
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(1)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.stl", b"solid", "read from .off, .obj, .ply"),
        ("a.off", b"COFFEE\n", "first line is not OFF"),
        ("a.off", off().encode()[:60], "announces 8 vertices"),
        ("a.off", off().replace("4 0 1 3 2", "4 0 1 3 9").encode(), "names vertex 9"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "without triangles"),
        ("a.obj", b"v 0 0 zero\n", "zero"),
        ("a.ply", b"ply\nformat ascii 1.0\n", "no PLY header"),
        ("a.ply", ply("ascii")[:-9], "ends too early"),
        ("a.ply", ply("binary_little_endian")[:-9], "cannot be read"),
        ("a.ply", ply("ascii").replace(b"format ascii", b"format other"), "unknown PLY format"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrivacyConfigError, match=reason) as found:
        read_mesh(tmp_path / name)
    assert name in str(found.value)


def folder(path: Path, **files: str) -> Path:
    for number, scale in enumerate((1.0, 1.1, 0.9)):
        (path / f"{number}.off").write_text(off(scale))
    (path / "targets.csv").write_text("mesh,vat,asat\n0.off,3,4\n1.off,4,5.5\n2.off,2,3\n")
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


def test_a_folder_is_read_and_centred(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path), ("vat", "asat"), 1.0)
    assert found.targets.tolist() == [[3, 4], [4, 5.5], [2, 3]]
    assert found.template is None
    for mesh, scale in zip(found.meshes, (1.0, 1.1, 0.9), strict=True):
        assert mesh.vertices.mean(0) == pytest.approx(0, abs=1e-12)
        assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(scale**3)  # absolute size is kept


def test_a_template_aligns(tmp_path: Path) -> None:
    turned = "\n".join(f"v {-y} {x} {z}" for x, y, z in CORNERS) + "\n"
    turned += "\n".join("f " + " ".join(str(i + 1) for i in square) for square in SQUARES)
    found = read_folder(folder(tmp_path, template_obj=turned), ("vat",), 1.0)
    assert found.template is not None
    assert found.meshes[0].vertices == pytest.approx(found.template)
    assert found.meshes[1].vertices == pytest.approx(1.1 * found.template)


@pytest.mark.parametrize(
    "files, reason",
    [
        ({"0_off": off(skip=1)}, r"0\.off has holes \(4 open edges\).*allow_holes=True"),
        ({"1_off": "OFF\n1 0 0\n0 0 0\n"}, r"1\.off.*no edges"),
        ({"targets_csv": "mesh,vat\n0.off,3\n"}, "no column asat"),
        ({"targets_csv": "mesh,vat,asat\n"}, "no rows"),
        ({"targets_csv": "mesh,vat,asat\n7.off,1,2\n"}, r"names the mesh 7\.off"),
        ({"targets_csv": "mesh,vat,asat\n0.off,1,\n"}, "no number"),
        ({"targets_csv": "mesh,vat,asat\n0.off,1,nan\n"}, "not finite"),
        ({"targets_csv": "mesh,vat,asat\n0.off,1,2\n1.off,1,2\n./0.off,3,4\n"}, "names a mesh twice"),
        ({"1_off": off(scale=1700)}, r"1\.off is 1700 m long: positions are in metres"),
        ({"template_obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"}, r"0\.off: 8 vertices, and the template has 3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    with pytest.raises(PrivacyConfigError, match=reason):
        read_folder(folder(tmp_path, **files), ("vat", "asat"), 1.0)


def test_holes_can_be_allowed(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path, **{"0_off": off(skip=1)}), ("vat",), 1.0, allow_holes=True)
    assert len(found.meshes[0].faces) == 10


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match=r"targets\.csv is missing"):
        read_folder(tmp_path, ("vat",), 1.0)


def test_meshes_of_a_subject_stay_known(tmp_path: Path) -> None:
    table = "mesh,vat,subject\n0.off,1,b\n1.off,2,a\n2.off,3,b\n"
    assert read_folder(folder(tmp_path, targets_csv=table), ("vat",), 1.0).subjects.tolist() == ["b", "a", "b"]
    assert np.array_equal(read_folder(tmp_path, ("vat",), 1.0).targets[:, 0], [1, 2, 3])

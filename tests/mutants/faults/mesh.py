"""Faults of meshes."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("MESH_FAULTS",)

MESH_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "graph norm runs over all meshes of the batch", "lightning_dp/models/mesh.py",
        "h = self.norms[number](h, batch.batch, batch.num_graphs)", "h = self.norms[number](h)",
        "tests/models/test_mesh.py::test_a_mesh_does_not_see_its_neighbours_in_the_batch",
    ),
    mutant(
        "meshes of one person are taken for persons of their own", "lightning_dp/data/bodies/module.py",
        'found[f"{part}/unit_id"] = owner[at].astype(np.int64)', 'found[f"{part}/unit_id"] = np.arange(len(at))',
        "tests/data/bodies/test_module.py::test_meshes_of_one_subject_stay_in_one_part_as_one_unit",
    ),
    mutant(
        "a mesh that is listed twice is two units", "lightning_dp/data/bodies/folder.py",
        'if len({(root / row["mesh"]).resolve() for row in rows}) < len(rows):', "if False:",
        "tests/data/bodies/test_files.py::test_what_does_not_fit_is_named",
    ),
)  # fmt: skip  # fmt: skip

"""Faults of volumes."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("VOLUME_FAULTS",)

VOLUME_FAULTS: tuple[Mutant, ...] = (
    mutant(
        "slices are folded before the batch axis", "lightning_dp/models/volumes/slices.py",
        "    return slices.flatten(0, 1)\n", "    return slices.transpose(0, 1).flatten(0, 1)\n",
        "tests/models/volumes/test_network.py::test_the_slices_of_a_volume_are_neighbouring_rows",
    ),
)  # fmt: skip  # fmt: skip

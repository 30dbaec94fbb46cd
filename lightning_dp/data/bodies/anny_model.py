"""The human body model of the anny package, with the parameters of the simulated bodies."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_dp.data.bodies.simulation import BodyModel, Parameters
from lightning_dp.data.bodies.surfaces import edges_of
from lightning_dp.data.cache import cache_folder
from lightning_dp.optional import require

__all__ = ("anny_bodies",)

#: Local shape changes of anny and how the parameters drive them. Few of them: each has to be unpacked once.
LOCAL = ("hip-scale-horiz-incr", "hip-scale-depth-incr", "stomach-pregnant-incr", "stomach-tone-incr")
FRAME = ("torso-scale-horiz-incr", "torso-scale-depth-incr")


def anny_bodies() -> BodyModel:
    """Adult bodies of anny: its phenotypes, and changes of stomach, hips and torso, in its upright resting pose.

    The largest connected part is kept, which leaves out eyes and tongue. The trunk reaches from the groin to below the
    chest. The first call unpacks anny's shapes into a cache of about a gigabyte (``$ANNY_CACHE_DIR``, else a folder beside
    the generated data), which takes from seconds to minutes.

    Raises:
        ModuleNotFoundError: The extra ``bodies`` is not installed.
    """
    os.environ.setdefault("ANNY_CACHE_DIR", str(cache_folder() / "anny"))
    anny = require("anny", "bodies", "BodyFatDataModule(bodies='anny')")
    model = anny.Anny(local_changes=[*LOCAL, *FRAME])
    faces = model.faces.cpu().numpy().astype(np.int64)
    shell = _largest_part(faces)
    number = np.full(int(faces.max()) + 1, -1)
    number[shell] = np.arange(len(shell))

    def vertices(of: Parameters) -> NDArray[np.float64]:
        tensors = {name: torch.from_numpy(value).to(model.dtype) for name, value in of.items()}
        phenotype = {
            "gender": 1 - tensors["male"],
            "age": 2 / 3 + (tensors["age"] - 25) / 65 / 3,  # 2/3: young adult; 1: old
            "height": 0.5 + 0.06 * tensors["height"],  # a standard deviation is 6 cm
            "muscle": 0.3 + 0.6 * tensors["muscle"],  # without it, a heavy body is several times the median
            **{name: tensors[name] for name in ("weight", "proportions")},
        }
        local = {
            "stomach-pregnant-incr": 0.6 * tensors["central"],
            "hip-scale-horiz-incr": 0.5 * tensors["peripheral"],
            "hip-scale-depth-incr": 0.5 * tensors["peripheral"],
            "stomach-tone-incr": tensors["tone"],
            "torso-scale-horiz-incr": 0.2 * tensors["frame_width"],
            "torso-scale-depth-incr": 0.2 * tensors["frame_depth"],
        }
        with torch.no_grad():
            positions = model(phenotype_kwargs=phenotype, local_changes_kwargs=local)["rest_vertices"]
        found: NDArray[np.float64] = positions[:, shell].double().cpu().numpy()
        return found

    with torch.no_grad():
        middling = model(phenotype_kwargs={"age": torch.tensor([0.8], dtype=model.dtype)})["rest_vertices"]
    template = middling[0, shell].double().cpu().numpy()
    kept = number[faces]
    kept = kept[(kept >= 0).all(1)]
    x, _, z = template[kept].mean(1).T
    trunk = (z > 0.07) & (z < 0.43) & (np.abs(x) < 0.22)
    waist = number[np.asarray(anny.Anthropometry(model).waist_vertex_indices)]
    return BodyModel("anny", vertices, kept, template, trunk, waist)


def _largest_part(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """The vertices of the largest connected part, sorted."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = edges_of(faces)
    size = int(faces.max()) + 1
    parts = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(size, size)), directed=False)[1]
    largest: NDArray[np.int64] = np.flatnonzero(parts == np.bincount(parts).argmax())
    return largest

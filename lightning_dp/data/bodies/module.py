"""Body surfaces with visceral and subcutaneous fat volumes, simulated or read from files, as batches of graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lightning_dp.data.arrays import ArrayDataModule, ArrayDataset
from lightning_dp.data.bodies.folder import read_folder
from lightning_dp.data.bodies.graphs import FEATURES, MeshDataset
from lightning_dp.data.bodies.silhouettes import SilhouetteDataset, silhouettes
from lightning_dp.data.bodies.simulation import TARGETS, BodyModel, ellipsoid_bodies, simulate
from lightning_dp.data.bodies.surfaces import Surface, cluster_vertices, collapse, decimate, kabsch
from lightning_dp.data.cache import generate_once
from lightning_dp.data.card import DataCard
from lightning_dp.data.splits import stratified_split
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("BodyFatDataModule",)

VERSION = 1  # of the simulated data: raised when their equations change
FOLDER_CARD = DataCard(
    name="Body surfaces from a folder of yours",
    licence="that of your data",
    n=0,  # not known before the folder is read
    real=True,
    unit="one body surface; with unit='unit_id' one subject with all of theirs, where targets.csv names subjects",
    source="the folder given as root=",
)


class BodyFatDataModule(ArrayDataModule):
    """Surfaces of bodies and their visceral (VAT) and abdominal subcutaneous (ASAT) fat in litres; one mesh, one unit.

    Without ``root`` the bodies are simulated, see :mod:`lightning_dp.data.bodies.simulation` for the equations and for the
    R2 that cannot be passed: a stand-in for whole-body imaging of a cohort, made once and kept. The same seed gives the same
    bodies.

    With ``root`` they are read: a folder of ``.ply``, ``.off`` or ``.obj`` files in metres, and ``targets.csv`` with a
    column ``mesh`` (a file name), a column for each target, and optionally ``subject``, whose meshes then stay in one
    part and are one unit with ``DPStrategy(unit="unit_id")``. A file ``template.ply`` (``.off``, ``.obj``) with
    corresponding vertices, which has to be public, makes alignment to it and residuals possible.

    Every mesh is moved to its mean and, where a template corresponds, turned onto the template; its size stays.

    Args:
        bodies: ``"anny"`` (extra ``bodies``) or ``"ellipsoid"`` (torsos, no further package).
        root: Folder of real meshes.
        level: Per cent of vertices kept, by vertex clustering on the template (without one, on each mesh).
        features: Of each vertex, in order: ``"position"`` (metres over 0.5), ``"residual"`` from the template (metres over
            0.05), ``"normal"``, ``"degree"`` (over 6).
        targets: Columns of ``targets.csv``; simulated bodies have ``vat`` and ``asat``.
        n_train: Simulated training bodies.
        n_val: Validation bodies, of ``root`` or simulated; 0 for none.
        n_test: Test bodies, likewise.
        allow_holes: Take real meshes that enclose no volume.
        form: What a sample is: a ``"graph"`` of the vertices, or ``"silhouettes"``, masks of the body from the front and from
            the side (:func:`~lightning_dp.data.bodies.silhouettes.silhouettes`), which need no torch-geometric and leave
            ``features`` unused.
        batch_size: Batch size of the train loader; under a private strategy the expected batch size B, in bodies.
        eval_batch_size: Batch size of the validation and test loaders.
        seed: Seed of the simulation, or of the split of real meshes.
        num_workers: Worker processes of the loaders.

    Shape:
        Torch-geometric batches with ``x`` ``(V, d)``, ``edge_index``, ``batch``, and ``y`` ``(N, t)`` in litres. Silhouettes:
        pairs of ``(N, 2, 96, 64)`` in [0, 1] and ``(N, t)``.

    Raises:
        PrivacyConfigError: Unknown settings, or meshes and targets that do not fit; the message names the file.
        ModuleNotFoundError: An extra is not installed.
    """

    card = DataCard(
        name="Simulated bodies with fat volumes (stand-in)",
        licence="simulated; the anny body model is Apache-2.0 with CC0 shapes",
        n=6000,
        real=False,
        unit="one body surface",
        source="lightning_dp.data.bodies.simulation on the shapes of the anny package, or on ellipsoids",
    )
    columns = ("mesh", "targets")

    def __init__(
        self,
        bodies: Literal["anny", "ellipsoid"] = "anny",
        root: str | None = None,
        level: float = 2,
        features: tuple[str, ...] = ("position", "residual"),
        targets: tuple[str, ...] = TARGETS,
        n_train: int = 6000,
        n_val: int = 500,
        n_test: int = 1500,
        allow_holes: bool = False,
        form: Literal["graph", "silhouettes"] = "graph",
        batch_size: int = 512,
        eval_batch_size: int = 256,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if not features or not set(features) <= set(FEATURES):
            raise PrivacyConfigError(f"features={tuple(features)}: choose from {', '.join(FEATURES)}.")
        if form not in ("graph", "silhouettes"):
            raise PrivacyConfigError(f"form={form!r} is unknown; choose 'graph' or 'silhouettes'.")
        if bodies not in ("anny", "ellipsoid"):
            raise PrivacyConfigError(f"bodies={bodies!r} is unknown; choose 'anny' or 'ellipsoid'.")
        if not 0 < level <= 100:
            raise PrivacyConfigError(
                f"level={level} per cent of the vertices; choose a number above 0 and at most 100."
            )
        if root is None and tuple(targets) != TARGETS:
            raise PrivacyConfigError(f"simulated bodies have the targets {', '.join(TARGETS)}; others need root=.")
        self.bodies, self.root, self.level, self.seed = bodies, root, float(level), seed
        self.features, self.targets, self.allow_holes = tuple(features), tuple(targets), allow_holes
        self.form = form
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        self.in_features = sum(FEATURES[name] for name in features)
        if root is not None:
            self.card = FOLDER_CARD
        self.meshes: list[Surface] = []
        self.template: NDArray[np.float64] | None = None

    def simulated(self) -> dict[str, NDArray[Any]]:
        """The simulated arrays of all parts, train first: see :func:`lightning_dp.data.bodies.simulate`."""
        return generate_once("body_fat", self._facts(), self._make)

    def _facts(self) -> dict[str, Any]:
        facts = {"bodies": self.bodies, "level": self.level, "n": sum(self.sizes.values()), "seed": self.seed}
        return {**facts, "version": VERSION}

    def _make(self) -> dict[str, NDArray[Any]]:
        model = self._body_model()
        surface = Surface(model.template, model.faces)
        labels = cluster_vertices(surface.vertices, self.level / 100)
        reduced = decimate(surface, self.level / 100)
        made = simulate(model, sum(self.sizes.values()), self.seed, lambda positions: collapse(positions, labels))
        return {**made, "faces": reduced.faces, "template": reduced.vertices}

    def _body_model(self) -> BodyModel:
        if self.bodies == "ellipsoid":
            return ellipsoid_bodies()
        from lightning_dp.data.bodies.anny_model import anny_bodies

        return anny_bodies()

    def prepare_data(self) -> None:
        """Make or read the bodies, if what their batches need is installed."""
        if self.form == "graph":
            require("torch_geometric", "graphs", "BodyFatDataModule")
        super().prepare_data()

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Numbers of the meshes, targets and, where there are any, owners of each part."""
        if self.root is not None:
            return self._read(Path(self.root))
        made = self.simulated()
        faces = made["faces"]
        self.template = made["template"] - made["template"].mean(0)
        self.meshes = [Surface(one, faces) for one in kabsch(made["vertices"].astype(np.float64), self.template)]
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for part, size in self.sizes.items():
            if size:
                found[f"{part}/mesh"] = np.arange(start, start + size)
                found[f"{part}/targets"] = made["targets"][start : start + size]
            start += size
        return found

    def _read(self, root: Path) -> Mapping[str, NDArray[Any]]:
        folder = read_folder(root, self.targets, self.level / 100, self.allow_holes)
        self.meshes, self.template = folder.meshes, folder.template
        owners, owner = np.unique(folder.subjects, return_inverse=True)
        kept, test = stratified_split(np.zeros(len(owners), dtype=np.int64), self.sizes["test"], self.seed, "n_test=")
        self.card = replace(FOLDER_CARD, n=len(kept))
        rest, val = stratified_split(np.zeros(len(kept), dtype=np.int64), self.sizes["val"], self.seed + 1, "n_val=")
        found: dict[str, NDArray[Any]] = {}
        for part, chosen in (("train", kept[rest]), ("val", kept[val]), ("test", test)):
            if len(chosen):
                at = np.flatnonzero(np.isin(owner, chosen))
                found[f"{part}/mesh"], found[f"{part}/targets"] = at, folder.targets[at]
                if len(owners) < len(owner):
                    found[f"{part}/unit_id"] = owner[at].astype(np.int64)
        return found

    def dataset(self, part: str, columns: list[NDArray[Any]], unit_id: NDArray[np.int64] | None) -> ArrayDataset:
        """The graphs, or the silhouettes, of one part."""
        if self.form == "silhouettes":
            return SilhouetteDataset([self._images()[columns[0]], columns[1]], unit_id)
        return MeshDataset(columns, unit_id, self.meshes, self.features, self.template)

    def _images(self) -> NDArray[np.uint8]:
        """Silhouettes of all meshes, those of simulated bodies made once."""
        if self.root is not None:
            return np.concatenate([silhouettes(mesh.vertices[None], mesh.faces) for mesh in self.meshes])

        def make() -> dict[str, NDArray[Any]]:
            return {"images": silhouettes(np.stack([mesh.vertices for mesh in self.meshes]), self.meshes[0].faces)}

        return generate_once("body_silhouettes", {**self._facts(), "drawing": 1}, make)["images"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of graphs, or of silhouettes."""
        if self.form == "silhouettes":
            return super().train_dataloader()
        return self._graph_loader("train", self.batch_size, shuffle=True)

    def _evaluation_loader(self, part: str) -> DataLoader[Any]:
        if self.form == "silhouettes":
            return super()._evaluation_loader(part)
        return self._graph_loader(part, self.eval_batch_size, shuffle=False)

    def _graph_loader(self, part: str, size: int, shuffle: bool) -> DataLoader[Any]:
        loader = require("torch_geometric.loader", "graphs", "BodyFatDataModule").DataLoader
        made: DataLoader[Any] = loader(self._part_set(part), size, shuffle=shuffle, num_workers=self.num_workers)
        return made

"""Data modules of the abdominal phantom: organ masks of one cohort, therapy response of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.abdomen.anatomy import LIVER, PANCREAS, SITES, TUMOUR, draw_patient
from lightning_dp.data.abdomen.response import ResponseModel
from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.cache import generate_once, progress
from lightning_dp.data.card import DataCard
from lightning_dp.errors import PrivacyConfigError

__all__ = ("AbdominalPhantom", "PancreasResponse", "hounsfield_window")

_VERSION = 1  # raise it when another anatomy is drawn from the same seed
SEGMENTATION_COHORT, RESPONSE_COHORT = 0, 1
COHORT_SIZE = 1_000_000  # patients of a cohort have the numbers from cohort * COHORT_SIZE on
#: Classes by target: the organ's number becomes the place in the list plus one.
TARGETS: Mapping[str, tuple[int, ...]] = {"liver": (LIVER,), "pancreas": (PANCREAS, TUMOUR)}
PARTS = ("train", "val", "test")


def hounsfield_window(image: NDArray[Any], low: float = -160.0, high: float = 240.0) -> NDArray[np.float32]:
    """HU within the window as -1 to 1, cut off outside. Give public constants: a statistic of private images is a release."""
    scaled: NDArray[np.float32] = np.clip((image - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    return scaled


def _cohort(
    cohort: int,
    sizes: Mapping[str, int],
    shape: tuple[int, int, int],
    field: float,
    sites: int,
    model: ResponseModel,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Whole patients, part after part; each has a generator of their own, so that no part depends on another's size."""
    found: dict[str, NDArray[Any]] = {}
    first = cohort * COHORT_SIZE
    for place, (part, count) in enumerate(sizes.items()):
        # Parts begin at fixed numbers: a patient never moves from one part to another when a size is changed.
        numbers = first + place * COHORT_SIZE // len(PARTS) + np.arange(count)
        images = np.empty((count, *shape), np.float32)
        masks = np.empty((count, *shape), np.uint8)
        traits, responses = np.empty((count, 3)), np.empty(count, np.int64)
        for i, number in enumerate(progress(numbers, f"abdominal phantom, {part}")):
            rng = np.random.default_rng([seed, int(number)])
            traits[i] = rng.standard_normal(3)
            responses[i] = model.draw(traits[i : i + 1], rng)[0]
            patient = draw_patient(shape, traits[i], SITES[number % sites], rng, field)
            images[i], masks[i] = hounsfield_window(patient.image), patient.labels
        found |= {f"{part}/images": images, f"{part}/masks": masks, f"{part}/patients": numbers}
        found |= {f"{part}/traits": traits, f"{part}/labels": responses}
    return found


class _Phantom(ArrayDataModule):
    """What both modules share: a cohort, generated once."""

    cohort: ClassVar[int]

    def __init__(
        self,
        shape: tuple[int, int, int],
        sizes: Mapping[str, int],
        field: float,
        sites: int,
        model: ResponseModel,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        folder: str | Path | None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, has_validation=sizes["val"] > 0)
        if not 1 <= sites <= len(SITES):
            raise PrivacyConfigError(f"sites={sites}: there are {len(SITES)} scanners, so choose 1 to {len(SITES)}.")
        if min(*shape, sizes["train"], sizes["test"]) < 1 or max(sizes.values()) > COHORT_SIZE // len(PARTS):
            raise PrivacyConfigError(
                f"sizes {dict(sizes)} of shape {shape}: every number must be positive (n_val may be 0), and a part has at most "
                f"{COHORT_SIZE // len(PARTS)} patients."
            )
        if not 0 < field <= 1:
            raise PrivacyConfigError(f"field={field}: choose it above 0, and 1 at most for the whole abdomen.")
        self.shape, self.sizes, self.field, self.sites, self.folder = shape, sizes, field, sites, folder
        self.model, self.seed = model, seed

    def patients(self) -> dict[str, NDArray[Any]]:
        """The whole cohort: ``images``, ``masks`` (all organs), ``traits``, ``labels`` and ``patients`` of each part."""
        model = self.model
        facts = {
            "version": _VERSION,
            "cohort": self.cohort,
            "sizes": dict(self.sizes),
            "shape": list(self.shape),
            "field": self.field,
            "sites": self.sites,
            "model": [model.gain, model.noise, *model.weights],
            "seed": self.seed,
        }
        kept = {part: count for part, count in self.sizes.items() if part != "val" or count}
        return generate_once(
            "abdominal_phantom",
            facts,
            lambda: _cohort(self.cohort, kept, self.shape, self.field, self.sites, model, self.seed),
            self.folder,
        )


class AbdominalPhantom(_Phantom):
    """Simulated abdomens with organ masks: slices of patients, or small volumes; a stand-in, not real data.

    Ellipsoid organs with uneven borders whose attenuation differs from patient to patient, smooth and white noise, a tumour
    in the pancreas; several scanners differ in noise, contrast and offset. Images are in [-1, 1], for -160 to 240 HU.

    With ``dims=2`` a patient has several slices, and the training set's ``unit_id`` says whose each is: a strategy with
    ``unit="unit_id"`` protects patients, one without protects single slices only.

    Args:
        target: ``"liver"`` (2 classes) or ``"pancreas"`` (3: background, pancreas, tumour).
        dims: 2 for slices, 3 for volumes.
        n_train: patients to train on.
        n_val: patients held out for choices; 0 for none.
        n_test: patients to test on. No patient is in two parts, and none is a patient of :class:`PancreasResponse`.
        size: rows and columns; with ``dims=3`` slices too.
        slices: slices of a patient with ``dims=2``, evenly spaced over the field of view.
        field: half the width of the field of view; below 1 it lies at a random place around the pancreas.
        sites: number of scanners, 1 to 3; patients are spread over them in turn.
        seed: of the patients.
        batch_size: batch size of the train loader; under a private strategy the expected number of units in a step.
        eval_batch_size: batch size of the other loaders.
        folder: see :func:`~lightning_dp.data.cache.cache_folder`.

    Shape:
        Batches ``(images, masks, volumes)``: float32 ``(N, 1, size, size)``, int64 ``(N, size, size)``, int64 ``(N,)``, the
        patient of each sample; with ``dims=3`` one more axis.
    """

    cohort = SEGMENTATION_COHORT
    columns = ("images", "masks", "volumes")
    card = DataCard(
        name="abdominal phantom, segmentation cohort",
        licence="none needed: computed",
        n=200,
        real=False,
        unit="one slice, or with unit='unit_id' one patient",
        source="ellipsoids and noise; stands in for the Medical Segmentation Decathlon",
    )

    def __init__(
        self,
        target: Literal["liver", "pancreas"] = "liver",
        dims: Literal[2, 3] = 2,
        n_train: int = 200,
        n_val: int = 40,
        n_test: int = 60,
        size: int = 32,
        slices: int = 8,
        field: float = 1.0,
        sites: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        folder: str | Path | None = None,
    ) -> None:
        if target not in TARGETS or dims not in (2, 3):
            raise PrivacyConfigError(
                f"target={target!r}, dims={dims!r}: choose 'liver' or 'pancreas', and 2 or 3. A response is the target of "
                "PancreasResponse."
            )
        sizes = {"train": n_train, "val": n_val, "test": n_test}
        shape = (slices if dims == 2 else size, size, size)
        super().__init__(shape, sizes, field, sites, ResponseModel(0.0), seed, batch_size, eval_batch_size, folder)
        self.target, self.dims = target, dims
        self.num_classes = len(TARGETS[target]) + 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Samples of each part: images, masks of the target, and the patient of each."""
        whole, found = self.patients(), dict[str, NDArray[Any]]()
        for part in PARTS:
            if f"{part}/images" not in whole:
                continue
            images, organs, owners = whole[f"{part}/images"], whole[f"{part}/masks"], whole[f"{part}/patients"]
            masks = np.zeros(organs.shape, np.int64)
            for k, organ in enumerate(TARGETS[self.target], start=1):
                masks[organs == organ] = k
            if self.dims == 2:
                owners = np.repeat(owners, self.shape[0])
            sides = self.shape[3 - self.dims :]
            found[f"{part}/images"], found[f"{part}/masks"] = images.reshape(-1, 1, *sides), masks.reshape(-1, *sides)
            found[f"{part}/volumes"] = found[f"{part}/unit_id"] = owners
        return found


class PancreasResponse(_Phantom):
    """Simulated abdomens with the response of a pancreatic tumour to therapy; a stand-in, not real data.

    The anatomy is that of :class:`AbdominalPhantom`; the patients are others. The response depends on the tumour's texture,
    enhancement and volume, and on noise, by a :class:`~lightning_dp.data.abdomen.ResponseModel`, so that the best possible
    AUC is known: :attr:`bayes_auc`. It is a ceiling: a classifier sees the traits through a noisy image only.

    Args:
        bayes_auc: the AUC of the best possible classifier, 0.5 to 0.99.
        n_train: patients to train on.
        n_val: patients held out for choices; 0 for none.
        n_test: patients to test on.
        size: slices, rows and columns.
        field: half the width of the field of view; below 1 it lies at a random place around the pancreas.
        sites: number of scanners, 1 to 3.
        seed: of the patients.
        batch_size: batch size of the train loader; under a private strategy the expected batch size.
        eval_batch_size: batch size of the other loaders.
        folder: see :func:`~lightning_dp.data.cache.cache_folder`.

    Shape:
        Batches ``(images, labels)``: float32 ``(N, 1, size, size, size)`` and int64 ``(N,)``, 1 for a response.
    """

    cohort = RESPONSE_COHORT
    columns = ("images", "labels")
    num_classes = 2
    card = DataCard(
        name="abdominal phantom, response cohort",
        licence="none needed: computed",
        n=300,
        real=False,
        unit="one patient",
        source="ellipsoids and noise, response by a logistic model; stands in for a clinical cohort",
    )

    def __init__(
        self,
        bayes_auc: float = 0.8,
        n_train: int = 300,
        n_val: int = 100,
        n_test: int = 300,
        size: int = 32,
        field: float = 1.0,
        sites: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        folder: str | Path | None = None,
    ) -> None:
        sizes = {"train": n_train, "val": n_val, "test": n_test}
        model = ResponseModel.with_bayes_auc(bayes_auc)
        super().__init__((size, size, size), sizes, field, sites, model, seed, batch_size, eval_batch_size, folder)

    @property
    def bayes_auc(self) -> float:
        """The AUC that no classifier can exceed, over infinitely many patients."""
        return self.model.bayes_auc

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Samples of each part: images and responses, and the patient of each."""
        whole = self.patients()
        found = {name: whole[name] for name in whole if name.endswith("/labels")}
        found |= {name: whole[name][:, None] for name in whole if name.endswith("/images")}
        return found | {name.replace("patients", "unit_id"): whole[name] for name in whole if "/patients" in name}

"""Simulated chest X-rays with real masks and demographics, and an unfairness whose size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.arrays import ArrayDataModule
from lightning_dp.data.cache import generate_once
from lightning_dp.data.card import DataCard
from lightning_dp.data.chest_xray.observer import FaintFindings, ideal_accuracy, parity_differences
from lightning_dp.data.chest_xray.population import amounts, draw_population, treated
from lightning_dp.data.chest_xray.simulator import simulate
from lightning_dp.data.chest_xray.tables import (
    ATTRIBUTES,
    FINDINGS,
    Visits,
    choose_patients,
    read_lung_masks,
    read_nih_table,
)
from lightning_dp.errors import PrivacyConfigError

__all__ = ("ChestXRayDataModule", "make_parts")

VERSION = 7  # raise it when the pictures change: the cache is then made anew
PARTS = ("train", "val", "test")
MASK_SHARES = (0.7, 0.1, 0.2)


class ChestXRayDataModule(ArrayDataModule):
    """**Simulated** chest X-rays of patients with real lungs, sex, age and findings, and, if wanted, a planted unfairness.

    A patient is a patient of the NIH ChestX-ray14 table (sex, and age and findings of up to ``max_visits`` visits) with a real
    lung mask that is bent in a way of their own. Pixels are drawn: they show what the labels say and nothing else. No mask and
    no patient is in two parts. In the validation and test parts each patient has one picture, so that intervals
    that take pictures for independent hold. Both sources are files of the torchxrayvision package, which is not imported.

    With ``unfairness``, findings of one group are drawn faintly. How much accuracy that costs the group with an ideal
    detector is known from the generator: :meth:`ideal_accuracies`, :meth:`planted_parity`. A monitor that looks at a good model
    must find that gap.

    With ``DPStrategy(unit="unit_id")`` the guarantee is for patients.

    Args:
        batch_size: batch size of the train loader; under a private strategy the expected batch size B.
        n_train: patients to train on, each with one or more pictures.
        n_val: patients for validation; 0 for none.
        n_test: patients to test on.
        max_visits: the most pictures of a training patient.
        image_size: pixels a side.
        noise: standard deviation of the white noise; brightness is from about 0 to 1.
        unfairness: the group whose findings are faint, how many and how faint; ``None`` treats all alike.
        with_finding: share of patients with a finding, half by default, which is far more than in the table; their visits
            with a finding come first. ``None`` takes patients as they come.
        seed: of everything.
        eval_batch_size: batch size of the validation and test loaders.
        num_workers: worker processes of the loaders.
        cache: folder for what is generated; see `lightning_dp.data.cache.cache_folder`.

    Shape:
        Batches ``(images, labels, levels)``: float32 ``(N, 1, image_size, image_size)``; float32 ``(N, 3)``, 0 or 1 for
        cardiomegaly, effusion, infiltrate; int64 ``(N, 2)``, sex and age group as numbered by `attributes`.

    Raises:
        ModuleNotFoundError: in ``prepare_data``, if torchxrayvision or pillow is not installed.
        PrivacyConfigError: for an unfairness to a group that does not exist, or more patients than there are.
    """

    columns = ("inputs", "labels", "levels")
    #: Names of the labels in order.
    findings: ClassVar[tuple[str, ...]] = tuple(FINDINGS)
    num_labels: ClassVar[int] = len(FINDINGS)
    #: The attributes of `levels` with their levels in order: what `lightning_dp.Groups` takes.
    attributes: ClassVar[dict[str, list[str]]] = ATTRIBUTES
    card = DataCard(
        name="Simulated chest X-rays (a stand-in)",
        licence="masks: CC BY 4.0 (V7 Labs); table: NIH Clinical Center, free to use; both as shipped with torchxrayvision",
        n=6000,
        real=False,
        unit="one patient with all their pictures (with unit='unit_id'; otherwise one picture)",
        source="drawn by lightning-dp; lung shapes, age, sex and findings are real (Wang et al., CVPR 2017, NIH ChestX-ray14)",
    )

    def __init__(
        self,
        batch_size: int = 256,
        n_train: int = 6000,
        n_val: int = 500,
        n_test: int = 2000,
        max_visits: int = 2,
        image_size: int = 32,
        noise: float = 0.08,
        unfairness: FaintFindings | None = None,
        with_finding: float | None = 0.5,
        seed: int = 0,
        eval_batch_size: int = 500,
        num_workers: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, has_validation=n_val > 0)
        if unfairness is not None and unfairness.level not in ATTRIBUTES.get(unfairness.attribute, ()):
            raise PrivacyConfigError(
                f"no group {unfairness.level!r} by {unfairness.attribute!r}: choose of {ATTRIBUTES}."
            )
        if min(n_train, n_test, max_visits) < 1 or n_val < 0 or image_size < 8 or noise <= 0:
            raise PrivacyConfigError(
                f"n_train={n_train}, n_test={n_test} and max_visits={max_visits} must be at least 1, n_val={n_val} at least 0, "
                f"image_size={image_size} at least 8, and noise={noise} above 0."
            )
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        self.max_visits, self.image_size, self.noise = max_visits, image_size, noise
        self.unfairness, self.with_finding, self.seed, self.cache = unfairness, with_finding, seed, cache
        self._made: dict[str, NDArray[Any]] = {}
        self._sources: tuple[Visits, NDArray[np.bool_]] | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample."""
        return 1, self.image_size, self.image_size

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The parts, from the cache if they were made before."""
        if not self._made:
            facts = {
                "version": VERSION, "sizes": self.sizes, "max_visits": self.max_visits, "image_size": self.image_size,
                "noise": self.noise, "with_finding": self.with_finding, "seed": self.seed,
                "unfairness": None if self.unfairness is None else asdict(self.unfairness),
            }  # fmt: skip
            self._made = generate_once("chest_xrays", facts, self._make, self.cache)
        return self._made

    def _make(self) -> dict[str, NDArray[Any]]:
        return make_parts(
            *self.sources(), self.sizes, self.max_visits, self.image_size, self.noise, self.unfairness, self.with_finding,
            self.seed,
        )  # fmt: skip

    def sources(self) -> tuple[Visits, NDArray[np.bool_]]:
        """What is real: the table of visits and the lung masks, read once."""
        if self._sources is None:
            self._sources = read_nih_table(), read_lung_masks()
        return self._sources

    def ideal_accuracies(self, part: str = "test") -> NDArray[np.float64]:
        """How accurate an ideal observer is expected to be on each picture of a part: the mean over its findings, ``(n,)``.

        Expected over noise and over which findings are faint, given who has what.
        """
        arrays = self.arrays()
        labels, levels = arrays[f"{part}/labels"], arrays[f"{part}/levels"]
        faint = self.unfairness or FaintFindings(share=0.0)
        share: NDArray[np.float64] = faint.share * treated(levels, faint)[:, None].astype(np.float64)
        prevalence: NDArray[np.float64] = np.clip(labels.mean(0, dtype=np.float64), 1e-6, 1 - 1e-6)
        strength: NDArray[np.float64] = arrays[f"{part}/strength"].astype(np.float64)
        absent, present = ideal_accuracy(strength, prevalence, share, faint.contrast)
        accuracy: NDArray[np.float64] = np.where(labels > 0, present, absent).mean(1)
        return accuracy

    def population(self, n: int, seed: int = 0, *, planted: bool = True) -> dict[str, NDArray[Any]]:
        """Fresh patients of the population that the test part is drawn from: ``inputs``, ``labels``, ``levels``, ``amount``.

        They are drawn with replacement from the whole table, get a mask of the test part's, an anatomy, a picture and noise of
        their own: nothing of a training picture is in them. A model's gap on many of them is its true gap, which the
        interval on a test set should hold as often as it says.

        Args:
            n: number of patients, one picture each; for many call it with several seeds.
            seed: of everything; it is no seed of the parts.
            planted: False draws the same patients, anatomies and noise without the unfairness.
        """
        return draw_population(
            *self.sources(), np.unique(self.arrays()["test/mask"]), n, self.image_size, self.noise,
            self.unfairness if planted else None, self.with_finding, seed,
        )  # fmt: skip

    def planted_parity(self, attribute: str = "sex", part: str = "test") -> dict[str, float]:
        """The accuracy parity difference of each group with an ideal observer: what the generator has planted.

        As `FairnessMonitor` measures it: accuracy of the group minus that of everybody else.
        """
        place = list(ATTRIBUTES).index(attribute)
        names = ATTRIBUTES[attribute]
        groups = self.arrays()[f"{part}/levels"][:, place]
        return dict(zip(names, parity_differences(self.ideal_accuracies(part), groups, len(names)), strict=True))


def make_parts(
    table: Visits,
    masks: NDArray[np.bool_],
    sizes: Mapping[str, int],
    max_visits: int,
    image_size: int,
    noise: float,
    unfairness: FaintFindings | None,
    with_finding: float | None,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """The arrays of all parts, as a function of the table and the masks: see `ChestXRayDataModule` for the arguments.

    Returns:
        For each part ``inputs``, ``labels``, ``levels``, ``unit_id``, ``mask`` (its number), ``amount`` (0, 1 or the faint
        contrast), ``strength`` and ``patient`` (the number in the table).
    """
    rng = np.random.default_rng([seed, 71])
    visits = choose_patients(table, sum(sizes.values()), max_visits, rng, with_finding)
    people = rng.permutation(np.unique(visits.patient))
    order = rng.permutation(len(masks))
    ends = np.cumsum([0.0, *MASK_SHARES]) * len(masks)
    made: dict[str, NDArray[Any]] = {}
    start = 0
    for number, part in enumerate(PARTS):
        patients = np.sort(people[start : start + sizes[part]])
        start += sizes[part]
        if not len(patients):
            continue
        rows = np.flatnonzero(np.isin(visits.patient, patients))
        if part != "train":  # one picture of each
            rows = rows[np.unique(visits.patient[rows], return_index=True)[1]]
        own = order[round(ends[number]) : round(ends[number + 1])]
        if not len(own):
            raise PrivacyConfigError(f"{len(masks)} masks are too few to give the part {part!r} some of its own.")
        chosen = visits.rows(rows)
        patient = np.searchsorted(patients, chosen.patient)
        mask_of_patient = rng.choice(own, len(patients))
        amount = amounts(chosen, unfairness, rng)
        pictures = simulate(masks, mask_of_patient, patient, amount, image_size, noise, int(rng.integers(2**31)))
        found: dict[str, NDArray[Any]] = {
            "inputs": pictures.images, "labels": chosen.labels, "levels": chosen.levels, "unit_id": patient,
            "mask": mask_of_patient[patient], "amount": amount, "strength": pictures.strength, "patient": chosen.patient,
        }  # fmt: skip
        made |= {f"{part}/{name}": values for name, values in found.items()}
    return made

"""Response to therapy by cross-validation over patients, stratified by the response, with DeLong's interval of each fold.

    python recipes/pancreas_response/folds.py                              # without privacy, three seeds, five folds each
    python recipes/pancreas_response/folds.py --eps 8 --seeds 0            # privately: what a patient spends in all folds

The segmentation cohort is another one, so that no patient of a test fold was ever seen with a mask; crops come from predicted
masks. Folds split the patients that ``pancreas.py`` trains on.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Sequence

import torch
from lightning.pytorch import seed_everything
from pancreas import VARIANTS, Setting, Variant, classify, inputs, predicted, segment, spread
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from lightning_dp.accounting import PrivacyLedger, PrivacySpent, privacy_spent
from lightning_dp.data import PancreasResponse
from lightning_dp.metrics import Estimate

CHOSEN = (VARIANTS[0], VARIANTS[3])


def folds_of(labels: Tensor, patients: Tensor, n_folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows to train and to test on: each row is tested on once, no patient is on both sides, and labels keep their shares."""
    split = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    parts = split.split(labels, labels, patients)
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in parts]


def all_folds(spent: Sequence[PrivacySpent]) -> PrivacySpent:
    """What the trainings that a patient is in guarantee together: all but the one that tests on it, whichever costs least."""
    composed = []
    for left_out in spent:
        ledger = PrivacyLedger()
        for entry in (entry for one in spent if one is not left_out for entry in one.entries):
            ledger.charge(entry.event, entry.steps)
        composed.append(privacy_spent(ledger.entries, max(one.delta for one in spent)))
    return max(composed, key=lambda one: one.eps)


def run(
    setting: Setting, seed: int, eps: float | None, n_folds: int, variants: Sequence[Variant]
) -> tuple[dict[str, list[Estimate]], list[PrivacySpent]]:
    """All folds of all variants for one seed, and what the trainings of the last variant spent."""
    seed_everything(seed, verbose=False)
    segmenter, _, _ = segment(setting, seed, eps)
    sizes = (setting.n_response, setting.n_val, setting.n_test)
    data = PancreasResponse(
        0.8, *sizes, size=setting.size, field=0.6, seed=seed
    )  # as in pancreas.py: one file in the cache
    arrays = {name: torch.from_numpy(array) for name, array in data.arrays().items()}
    images, labels, patients = (arrays[f"train/{name}"] for name in ("images", "labels", "unit_id"))
    masks, found, spent = predicted(segmenter, images), dict[str, list[Estimate]](), list[PrivacySpent]()
    for variant in variants:
        seen, _ = inputs(variant, images, masks, setting)
        found[variant.name], spent = [], []
        for train, test in folds_of(labels, patients, n_folds, seed):
            parts = {"train": (seen[train], labels[train]), "test": (seen[test], labels[test])}
            seed_everything(seed, verbose=False)
            estimate, one = classify(variant, parts, segmenter, setting, eps)
            found[variant.name].append(estimate)
            spent += [] if one is None else [one]
    return found, spent


def main(
    eps: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    n_folds: int = 5,
    setting: Setting | None = None,
    variants: Sequence[Variant] = CHOSEN,
) -> list[dict[str, list[Estimate]]]:
    """Run all seeds and print each fold, its mean and its spread."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = []
    for seed in seeds:
        start = time.perf_counter()
        found, spent = run(Setting() if setting is None else setting, seed, eps, n_folds, variants)
        results.append(found)
        print(f"seed {seed} ({time.perf_counter() - start:.0f} s)", flush=True)
        for name, estimates in found.items():
            print(f"  {name:<26} {spread([e.value for e in estimates])}: {'; '.join(map(str, estimates))}", flush=True)
        if spent:
            print(f"  a patient is in {n_folds - 1} of the {n_folds} trainings of a variant, each with {spent[0]}")
            print(f"  all of them together, for every patient: {all_folds(spent)}")
    for variant in variants:
        means = [statistics.mean(e.value for e in found[variant.name]) for found in results]
        print(f"{variant.name:<26} mean over folds, mean and deviation over seeds: {spread(means)}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)
    given = parser.parse_args()
    main(given.eps, given.seeds, given.folds)

"""Response to therapy from CT: segmentation, localisation, transfer of the encoder, classification; with its ablation.

    python recipes/pancreas_response/pancreas.py                                  # without privacy, five seeds
    python recipes/pancreas_response/pancreas.py --eps 8 --seeds 0 1 2            # both networks trained privately

The data are simulated: organ masks of one cohort, responses of another one with a known best possible AUC.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy
from lightning_dp.accounting import PrivacyLedger, PrivacySpent, privacy_spent
from lightning_dp.data import AbdominalPhantom, PancreasResponse
from lightning_dp.metrics import Estimate, SegmentationDice, delong_auroc
from lightning_dp.models import EncoderClassifier, UNet, copy_encoder, localise
from lightning_dp.tasks import ResponseTask, SegmentationTask
from lightning_dp.tasks.optimisation import unchanged

SEEDS = (0, 1, 2, 3, 4)
MARGIN = 1  # voxels around the predicted mask


@dataclass(frozen=True)
class Variant:
    """Which stages are switched on."""

    name: str
    localised: bool = False
    transferred: bool = False
    mask_pooling: bool = False
    reconstruction: bool = False
    frozen_first: bool = False


VARIANTS = (
    Variant("neither"),
    Variant("transfer", transferred=True),
    Variant("localisation", localised=True),
    Variant("localisation + transfer", localised=True, transferred=True),
    Variant("... + mask pooling", localised=True, transferred=True, mask_pooling=True),
    Variant("... + reconstruction", localised=True, transferred=True, reconstruction=True),
    Variant("... + frozen first", localised=True, transferred=True, frozen_first=True),
)


@dataclass(frozen=True)
class Setting:
    """Sizes and training settings: those of the README by default."""

    n_segmentation: int = 400
    n_response: int = 400
    n_val: int = 200
    n_test: int = 400
    size: int = 16  # of the volumes
    crop: int = 12  # of what the classifier sees
    filters: int = 4
    segmentation_steps: int = 300
    segmentation_batch_size: int = 16
    response_steps: int = 150
    response_batch_size: int = 32
    segmentation_lr: float = 1e-2  # Adam
    response_lr: float = 3e-3
    private_steps: int = 30  # of either network
    private_batch_size: int = 120
    private_segmentation_lr: float = 0.5  # SGD with momentum
    private_response_lr: float = 1.0
    max_grad_norm: float = 0.1
    frozen_epochs: int = 4  # of 12: the encoder's, in the variant that freezes it first and then trains it at lr / 10
    private_frozen_epochs: int = 2  # of 8


@dataclass(frozen=True)
class Outcome:
    """One seed: Dice of the foreground, AUC of each variant (DeLong), share of samples without a prediction, what was spent."""

    dice: float
    auroc: dict[str, Estimate]
    empty: float
    spent: tuple[PrivacySpent, PrivacySpent] | None


def unet(setting: Setting) -> UNet:
    """The segmentation network; its encoder is the classifiers' too."""
    return UNet(1, 3, dims=3, filters=setting.filters, depth=2)


def train(
    task: LightningModule, loader: DataLoader[Any], steps: int, eps: float | None, bound: float, frozen_epochs: int = 0
) -> PrivacySpent | None:
    """Train for so many steps, privately if eps is given; the encoder only after ``frozen_epochs``, at a tenth of the rate."""
    strategy = "auto" if eps is None else DPStrategy(eps, max_grad_norm=bound, physical_batch_size=64)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    if frozen_epochs:
        quiet["callbacks"] = [BackboneFinetuning(frozen_epochs, unchanged, backbone_initial_ratio_lr=0.1)]
    trainer = Trainer(strategy=strategy, max_steps=steps, accelerator="cpu", devices=1, logger=False, **quiet)
    trainer.fit(task, loader)
    return strategy.privacy_spent() if isinstance(strategy, DPStrategy) else None


def segment(setting: Setting, seed: int, eps: float | None) -> tuple[SegmentationTask, float, PrivacySpent | None]:
    """Train the segmentation network on its own cohort; the Dice of its foreground on other patients."""
    private, count = eps is not None, setting.n_segmentation
    batch_size = setting.private_batch_size if private else setting.segmentation_batch_size
    data = AbdominalPhantom("pancreas", 3, count, 0, 100, setting.size, field=0.6, seed=seed, batch_size=batch_size)
    data.setup()
    if private:
        lr = setting.private_segmentation_lr
        task = SegmentationTask(unet(setting), "dice", lr=lr, optimizer="sgd", num_classes=3)
    else:
        task = SegmentationTask(unet(setting), lr=setting.segmentation_lr, num_classes=3)
    steps = setting.private_steps if private else setting.segmentation_steps
    spent = train(task, data.train_dataloader(), steps, eps, setting.max_grad_norm)
    arrays = data.arrays()
    truth = torch.from_numpy(arrays["test/masks"] > 0).long()
    metric = SegmentationDice()
    metric.update(predicted(task, torch.from_numpy(arrays["test/images"])), truth)
    return task, float(metric.compute()["dice"]), spent


@torch.no_grad()
def predicted(task: SegmentationTask, images: Tensor) -> Tensor:
    """Pancreas or tumour, 1, against all else, 0, as the network predicts them."""
    task.eval()
    return torch.cat([task.masks(task(part)) > 0 for part in images.split(64)]).long()


def inputs(variant: Variant, images: Tensor, masks: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """What the classifier sees, and which samples had no prediction. All volumes come to one size, localised or not."""
    size = (setting.crop,) * 3
    seen = masks if variant.localised else torch.ones_like(masks)
    crops = localise(images, seen, size, MARGIN)
    if not variant.mask_pooling:
        return crops.images, crops.empty
    return torch.cat([crops.images, crops.masks.unsqueeze(1)], 1), crops.empty


def classify(
    variant: Variant,
    parts: dict[str, tuple[Tensor, Tensor]],
    segmenter: SegmentationTask,
    setting: Setting,
    eps: float | None,
    evaluate: str = "test",
) -> tuple[Estimate, PrivacySpent | None]:
    """Train one variant on ``parts["train"]``; its AUC on another part, with DeLong's interval."""
    pooling = "mask" if variant.mask_pooling else "mean"
    network = EncoderClassifier(unet(setting).encoder, 2, pooling, variant.reconstruction)
    if variant.transferred:
        assert isinstance(segmenter.network, UNet)
        copy_encoder(segmenter.network, network)
    private = eps is not None
    batch_size = setting.private_batch_size if private else setting.response_batch_size
    if private:
        task = ResponseTask(network, lr=setting.private_response_lr, optimizer="sgd")
    else:
        task = ResponseTask(network, lr=setting.response_lr)
    loader = DataLoader(TensorDataset(*parts["train"]), batch_size, shuffle=True)
    steps = setting.private_steps if private else setting.response_steps
    frozen = setting.private_frozen_epochs if private else setting.frozen_epochs
    spent = train(task, loader, steps, eps, setting.max_grad_norm, frozen if variant.frozen_first else 0)
    images, labels = parts[evaluate]
    return delong_auroc(response_scores(task, images), labels), spent


@torch.no_grad()
def response_scores(task: ResponseTask, images: Tensor) -> Tensor:
    """The predicted chance of a response."""
    task.eval()
    return torch.cat([task.predict_step(part, 0)[:, 1] for part in images.split(200)])


def combined(first: PrivacySpent, second: PrivacySpent, same_patients: bool) -> str:
    """What two private trainings guarantee together, in words.

    On **disjoint** cohorts a patient is in one of them, so their guarantee is that of their own cohort's training, and the
    larger of the two holds for everybody (parallel composition; the second training may use what the first released). On
    the **same** patients both mechanisms see each of them: their events go into one ledger and are composed.
    """
    delta = max(first.delta, second.delta)
    if not same_patients:
        eps = max(first.eps, second.eps)
        return f"disjoint cohorts, parallel composition: every patient has eps <= {eps:.4g} at delta = {delta:.4g}"
    ledger = PrivacyLedger()
    for entry in (*first.entries, *second.entries):
        ledger.charge(entry.event, entry.steps)
    return f"the same patients in both, composed: {privacy_spent(ledger.entries, delta)}"


def run(setting: Setting, seed: int, eps: float | None, variants: Sequence[Variant], evaluate: str = "test") -> Outcome:
    """The whole pipeline for one seed: data, initial weights, and batches where there is no privacy."""
    seed_everything(seed, verbose=False)
    segmenter, dice, spent = segment(setting, seed, eps)
    sizes = (setting.n_response, setting.n_val, setting.n_test)
    data = PancreasResponse(0.8, *sizes, size=setting.size, field=0.6, seed=seed)
    arrays = {name: torch.from_numpy(array) for name, array in data.arrays().items()}
    masks = {part: predicted(segmenter, arrays[f"{part}/images"]) for part in ("train", evaluate)}
    auroc, empty, spent_on_responses = {}, 0, None
    for variant in variants:
        parts = {}
        for part in ("train", evaluate):
            images, missing = inputs(variant, arrays[f"{part}/images"], masks[part], setting)
            parts[part] = (images, arrays[f"{part}/labels"])
            empty = max(empty, int(missing.sum()) if part == evaluate else 0)
        seed_everything(seed, verbose=False)  # the same initial weights for all, where they are not transferred
        auroc[variant.name], spent_on_responses = classify(variant, parts, segmenter, setting, eps, evaluate)
    both = None if spent is None or spent_on_responses is None else (spent, spent_on_responses)
    return Outcome(dice, auroc, empty / len(masks[evaluate]), both)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ({deviation:.3f})"


def main(
    eps: float | None = None,
    seeds: Sequence[int] = SEEDS,
    setting: Setting | None = None,
    variants: Sequence[Variant] = VARIANTS,
    evaluate: str = "test",
) -> list[Outcome]:
    """Run all seeds and print the ablation; choices are made with ``evaluate="val"``, never on test."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    setting = Setting() if setting is None else setting
    outcomes = []
    for seed in seeds:
        start = time.perf_counter()
        outcomes.append(run(setting, seed, eps, variants, evaluate))
        found = ", ".join(f"{name} {value}" for name, value in outcomes[-1].auroc.items())
        print(f"seed {seed}: Dice {outcomes[-1].dice:.3f}; {found} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"\nDice of the foreground: {spread([o.dice for o in outcomes])}")
    print(f"samples without a prediction, cropped at the centre: {spread([o.empty for o in outcomes])}")
    base = variants[0].name
    for variant in variants:
        values, gain = ([o.auroc[variant.name].value - less * o.auroc[base].value for o in outcomes] for less in (0, 1))
        print(f"{variant.name:<26} {evaluate} AUC {spread(values)}, gain {spread(gain)}")
    print(f"{'best possible (Bayes)':<26} AUC {PancreasResponse(0.8).bayes_auc:.3f}")
    if outcomes[0].spent is not None:
        first, second = outcomes[0].spent
        print(f"segmentation: {first}\nresponse, each variant by itself: {second}")
        print(f"both: {combined(first, second, same_patients=False)}")
        print(f"had they been {combined(first, second, same_patients=True)}")
    else:
        print("trained without privacy: eps = inf")
    print(", ".join(f"{name} {version(name)}" for name in ("lightning-dp", "lightning", "torch", "dp-accounting")))
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--evaluate", choices=["val", "test"], default="test")
    parser.add_argument("--response-lr", type=float, default=None, help="of the classifiers")
    parser.add_argument("--variants", type=int, nargs="+", default=list(range(len(VARIANTS))), help="numbers from 0")
    given = parser.parse_args()
    chosen = (
        {} if given.response_lr is None else dict.fromkeys(("response_lr", "private_response_lr"), given.response_lr)
    )
    main(given.eps, given.seeds, Setting(**chosen), [VARIANTS[i] for i in given.variants], given.evaluate)

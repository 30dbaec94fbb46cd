"""The detection task: private from the first step, and its measures are the libraries'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_dp import DPStrategy
from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.metrics.functional import object_count_area
from lightning_dp.models import AnchorFreeDetector
from lightning_dp.models.detection import PADDING, pad_targets
from lightning_dp.tasks import DetectionTask

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")


def scenes(n: int = 24, seed: int = 0) -> TensorDataset:
    """Squares of two shades on grey, one to three an image; every other image is of group 1."""
    make = torch.Generator().manual_seed(seed)
    images, boxes, labels = torch.full((n, 3, 32, 32), 0.5), [], []
    for i in range(n):
        corner = torch.randint(0, 20, (1 + i % 3, 2), generator=make)
        label = torch.randint(0, 2, (1 + i % 3,), generator=make)
        for (x, y), shade in zip(corner, label, strict=True):
            images[i, :, y : y + 12, x : x + 12] = float(shade)
        boxes.append(torch.cat([corner, corner + 12], 1).float())
        labels.append(label)
    return TensorDataset(images, *pad_targets(boxes, labels, 4), torch.arange(n) % 2)


def task(**settings: Any) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(AnchorFreeDetector(2, width=8), **settings)


def trainer(**settings: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    return Trainer(**{**quiet, "enable_progress_bar": False, "enable_model_summary": False, **settings})


class Coupled(DetectionTask):
    """Divided by the batch's number of objects, as detectors usually are."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, boxes, labels = batch[:3]
        return self.losses(self(images), boxes, labels).sum() / (labels != PADDING).sum()


def test_trains_privately_and_passes_the_self_check() -> None:
    strategy = DPStrategy(noise_multiplier=1.0, physical_batch_size=5)
    run = trainer(strategy=strategy, fast_dev_run=2)
    run.fit(task(), DataLoader(scenes(), batch_size=8, shuffle=True))
    assert strategy.ledger.steps == 2


def test_a_loss_over_the_objects_of_the_batch_is_refused() -> None:
    module = Coupled(AnchorFreeDetector(2, width=8))
    with pytest.raises(PrivacyError, match="samples"):
        trainer(strategy=DPStrategy(noise_multiplier=1.0), fast_dev_run=1).fit(
            module, DataLoader(scenes(), batch_size=8, shuffle=True)
        )


def test_measures_are_those_of_all_images_and_of_each_group() -> None:
    from torchmetrics.detection import MeanAveragePrecision

    module, data = task(lr=5e-3, group_names=("day", "night"), box_weight=2.0), scenes(96)
    trainer(max_epochs=15).fit(module, DataLoader(data, batch_size=16))
    (result,) = trainer().test(module, DataLoader(scenes(30, seed=1), batch_size=7), verbose=False)
    images, boxes, labels, groups = scenes(30, seed=1).tensors
    with torch.no_grad():
        found = module.eval().detect(images)
    for name, chosen in (("", range(30)), ("/day", range(0, 30, 2)), ("/night", range(1, 30, 2))):
        preds = [found[i] for i in chosen]
        truth = [labels[i][labels[i] != PADDING] for i in chosen]
        area = object_count_area([(one.scores, one.labels) for one in preds], truth)
        assert result[f"test/count_area{name}"] == pytest.approx(float(area), rel=1e-5)
        metric = MeanAveragePrecision(iou_thresholds=[0.5])
        target = [{"boxes": boxes[i][labels[i] != PADDING], "labels": t} for i, t in zip(chosen, truth, strict=True)]
        metric.update([one._asdict() for one in preds], target)
        assert result[f"test/map_50{name}"] == pytest.approx(float(metric.compute()["map_50"]), rel=1e-5)
    assert result["test/map_50"] > 0.5
    assert result["test/count_area"] > 0.5


def test_training_logs_nothing() -> None:
    run = trainer(max_epochs=1)
    run.fit(task(), DataLoader(scenes(), batch_size=8))
    assert run.logged_metrics == {}


def test_prediction_needs_no_boxes() -> None:
    (found,) = trainer().predict(task(score_threshold=0.0), DataLoader(TensorDataset(scenes().tensors[0][:3]), 3))
    assert len(found) == 3
    assert all(one.boxes.shape[1] == 4 and len(one.scores) <= 50 for one in found)


def test_bad_settings_are_named() -> None:
    with pytest.raises(PrivacyConfigError, match="trains an AnchorFreeDetector"):
        DetectionTask(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="no fourth item"):
        trainer().test(
            task(group_names=("day", "night")), DataLoader(TensorDataset(*scenes().tensors[:3]), 8), verbose=False
        )
    images, boxes, labels, _ = scenes().tensors
    outside = DataLoader(TensorDataset(images, boxes + 20, labels), 8)
    with pytest.raises(ValueError, match="reaches outside the image"):
        trainer(fast_dev_run=1).fit(task(), outside)

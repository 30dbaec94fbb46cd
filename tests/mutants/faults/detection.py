"""Faults of detection."""

from __future__ import annotations

from tests.mutants.fault import Mutant, mutant

__all__ = ("DETECTION_FAULTS",)

DETECTION_LOSS = "lightning_dp/models/detection/loss.py"
DETECTION_TRAINING = "tests/tasks/test_detection.py::test_trains_privately_and_passes_the_self_check"
DETECTOR_TESTS = "tests/models/test_detection.py"

DETECTION_FAULTS: tuple[Mutant, ...] = (
    # The self-check alone has to find this one: no other test of the loss is listed.
    mutant(
        "a detector's loss is divided by the batch's number of objects", DETECTION_LOSS,
        "(of_classes + box_weight * of_boxes) / expected_positives",
        "(of_classes + box_weight * of_boxes) / positive.sum().clamp(min=1)",
        DETECTION_TRAINING,
    ),
    mutant(
        "a detector's loss is divided by the batch's mean overlap", DETECTION_LOSS,
        "(of_classes + box_weight * of_boxes) / expected_positives",
        "(of_classes + box_weight * of_boxes / apart.mean().detach()) / expected_positives",
        f"{DETECTOR_TESTS}::test_loss_of_an_image_does_not_depend_on_the_others",
    ),
    mutant(
        "a detector's layers normalise over the batch", "lightning_dp/models/detection/network.py",
        "        nn.GroupNorm(groups, channels_out),\n", "        nn.BatchNorm2d(channels_out),\n",
        DETECTION_TRAINING,
        f"{DETECTOR_TESTS}::test_images_do_not_meet",
    ),
    mutant(
        "places for objects are as many as the images at hand need", "lightning_dp/models/detection/padding.py",
        "    all_boxes = torch.zeros(len(boxes), max_boxes, 4)\n",
        "    max_boxes = max(len(one) for one in boxes)\n    all_boxes = torch.zeros(len(boxes), max_boxes, 4)\n",
        f"{DETECTOR_TESTS}::test_boxes_are_padded",
    ),
    mutant(
        "an image with two lines is two units", "lightning_dp/data/food/modules.py",
        "if path.resolve() in seen:", "if False:",
        "tests/data/test_food.py::test_bad_folders_are_named",
    ),
)  # fmt: skip  # fmt: skip

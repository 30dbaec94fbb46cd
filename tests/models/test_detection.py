"""The detector: its grid, who answers for which box, and a loss in which images do not meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyConfigError
from lightning_dp.gradients import Clipping, GradientEngine
from lightning_dp.models import AnchorFreeDetector
from lightning_dp.models.detection import (
    PADDING,
    Detections,
    assign,
    check_targets,
    decode,
    detection_loss,
    pad_targets,
    suppress,
)
from lightning_dp.models.detection.decoding import boxes_of_cells
from tests.gradients.oracle import clipped_sum, layer_numbers, relative_error, unit_gradients

ops = pytest.importorskip("torchvision.ops")


def scenes(n: int, size: int = 64, places: int = 6, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with boxes, the number of which differs from image to image; the first image has none."""
    make = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for i in range(n):
        corner = torch.rand(i % places, 2, generator=make) * size / 2
        side = 4 + torch.rand(i % places, 2, generator=make) * (size / 2 - 4)
        boxes.append(torch.cat([corner, corner + side], 1))
        labels.append(torch.randint(0, classes, (i % places,), generator=make))
    return torch.rand(n, 3, size, size, generator=make), *pad_targets(boxes, labels, places)


def detector(classes: int = 5, stride: int = 8, **settings: int) -> AnchorFreeDetector:
    torch.manual_seed(0)
    return AnchorFreeDetector(classes, width=8, stride=stride, **settings)  # type: ignore[arg-type]


# --- network ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 8)])
@pytest.mark.parametrize("stride", [4, 8])
def test_grid_covers_the_image(stride: int, size: tuple[int, int]) -> None:
    out = detector(3, stride)(torch.rand(2, 3, *size))
    assert out.shape == (2, 7, size[0] // stride, size[1] // stride)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    assert detector(2, in_channels=channels)(torch.rand(1, channels, 16, 16)).shape == (1, 6, 2, 2)


def test_an_untrained_network_expects_little() -> None:
    scores = detector()(torch.rand(4, 3, 64, 64))[:, :5].detach().sigmoid()
    assert float(scores.max()) < 0.06
    assert float(scores.mean()) == pytest.approx(0.02, abs=0.005)


def test_images_do_not_meet() -> None:
    images = torch.rand(4, 3, 64, 64)
    net = detector(stride=4)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    assert list(net.buffers()) == []


def test_bad_settings_and_images_are_named() -> None:
    with pytest.raises(PrivacyConfigError, match="1 or more"):
        AnchorFreeDetector(0)
    with pytest.raises(PrivacyConfigError, match="choose 4"):
        AnchorFreeDetector(3, stride=2)  # type: ignore[arg-type]
    with pytest.raises(PrivacyConfigError, match="prior=0"):
        AnchorFreeDetector(3, prior=0.0)
    net = detector()
    with pytest.raises(ValueError, match="1 channels, the detector takes 3: build it with in_channels=1"):
        net(torch.rand(2, 1, 64, 64))
    with pytest.raises(ValueError, match="100 x 64 pixels: 8 must divide"):
        net(torch.rand(2, 3, 100, 64))
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\)"):
        net(torch.rand(3, 64, 64))


# --- targets ------------------------------------------------------------------------------------------------
def test_boxes_are_padded() -> None:
    boxes, labels = pad_targets([torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4)], [torch.tensor([7]), []], 2)  # type: ignore[list-item]
    assert boxes.tolist() == [[[1, 2, 3, 4], [0, 0, 0, 0]], [[0] * 4] * 2]
    assert labels.tolist() == [[7, PADDING], [PADDING, PADDING]]
    check_targets(boxes, labels, 8, 8, 8)


def test_bad_lists_of_boxes_are_named() -> None:
    one = torch.tensor([[1.0, 2, 3, 4]])
    with pytest.raises(ValueError, match="image 1 has 3 boxes, there are places for 2: raise max_boxes"):
        pad_targets([one, one.repeat(3, 1)], [torch.zeros(1), torch.zeros(3)], 2)
    with pytest.raises(ValueError, match="image 0 has 1 boxes and 2 labels"):
        pad_targets([one], [torch.zeros(2)], 2)
    with pytest.raises(ValueError, match="boxes of 1 images and labels of 2"):
        pad_targets([one], [torch.zeros(1)] * 2, 2)
    with pytest.raises(PrivacyConfigError, match="at least one place"):
        pad_targets([one], [torch.zeros(1)], 0)


@pytest.mark.parametrize(
    "box, label, message",
    [
        (
            (-1.0, 2, 5, 6),
            0,
            r"image 1 of the batch, box 2: \(-1.0, 2.0, 5.0, 6.0\) reaches outside the image of 20 x 10",
        ),
        ((1.0, 2, 20.5, 6), 0, "clip_boxes_to_image"),
        ((1.0, 2, 5, 10.5), 0, "reaches outside"),
        ((1.0, float("nan"), 5, 6), 0, "reaches outside"),
        ((5.0, 2, 1, 6), 0, "has no area.*box_convert"),
        ((1.0, 2, 5, 2), 0, "has no area"),
        ((1.0, 2, 5, 6), 3, r"label 3 is outside 0 \.\. 2"),
        ((1.0, 2, 5, 6), -2, "label -2 is outside"),
    ],
)
def test_impossible_boxes_are_named(box: tuple[float, ...], label: int, message: str) -> None:
    boxes, labels = torch.zeros(2, 3, 4), torch.full((2, 3), PADDING)
    boxes[1, 2], labels[1, 2] = torch.tensor(box), label
    with pytest.raises(ValueError, match=message):
        check_targets(boxes, labels, 3, 10, 20)
    labels[1, 2] = PADDING  # what a place without an object holds does not matter
    check_targets(boxes, labels, 3, 10, 20)


def test_targets_of_a_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match="pad_targets makes them"):
        check_targets(torch.zeros(2, 4), torch.zeros(2), 3, 10, 20)
    with pytest.raises(ValueError, match="2 images and boxes of 3"):
        detection_loss(torch.zeros(2, 7, 2, 2), torch.zeros(3, 1, 4), torch.zeros(3, 1).long(), 8)
    with pytest.raises(PrivacyConfigError, match="public guess"):
        detection_loss(torch.zeros(2, 7, 2, 2), torch.zeros(2, 1, 4), torch.zeros(2, 1).long(), 8, expected_positives=0)


def test_cells_by_hand() -> None:
    """A box of two cells by two, centred on a corner of the grid, has its four cells; a point-like one has one."""
    boxes, labels = pad_targets(
        [torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([[1.0, 1, 2, 2]])], [torch.tensor([3]), torch.tensor([1])], 2
    )
    found = assign(boxes, labels, 4, 4, 8, radius=1.0)
    grid = found.labels.reshape(2, 4, 4)
    assert grid[0].tolist() == [[-1] * 4, [-1, 3, 3, -1], [-1, 3, 3, -1], [-1] * 4]
    assert grid[1].nonzero().tolist() == [[i, j] for i in range(4) for j in range(4)]
    assert (grid[1] != PADDING).nonzero().tolist() == [[0, 0]]
    assert found.boxes[0, 5].tolist() == [8, 8, 24, 24]


def test_the_smaller_box_wins() -> None:
    boxes, labels = pad_targets([torch.tensor([[0.0, 0, 32, 32], [12, 12, 20, 20]])], [torch.tensor([0, 1])], 2)
    for order in ([0, 1], [1, 0]):
        grid = assign(boxes[:, order], labels[:, order], 4, 4, 8, radius=2.0).labels.reshape(4, 4)
        assert grid[2, 2] == 1
        assert grid[0, 1] == 0


def test_every_box_has_a_cell_and_padding_has_none() -> None:
    _, boxes, labels = scenes(60)
    found = assign(boxes, labels, 8, 8, 8)
    for i in range(60):
        of_cells = {
            tuple(box) for box, label in zip(found.boxes[i].tolist(), found.labels[i], strict=True) if label >= 0
        }
        there = {tuple(box) for box, label in zip(boxes[i].tolist(), labels[i], strict=True) if label >= 0}
        assert of_cells <= there
        assert len(there - of_cells) <= 1  # a smaller one may have taken its only cell
    assert (found.labels[0] == PADDING).all()


def test_a_box_at_the_last_pixel_has_a_cell() -> None:
    boxes, labels = pad_targets([torch.tensor([[31.9, 31.9, 32, 32]])], [torch.tensor([0])], 1)
    assert (assign(boxes, labels, 4, 4, 8).labels >= 0).nonzero().tolist() == [[0, 15]]


# --- loss ---------------------------------------------------------------------------------------------------
def test_loss_of_an_image_does_not_depend_on_the_others() -> None:
    images, boxes, labels = scenes(9)
    out = detector()(images)
    together = detection_loss(out, boxes, labels, 8)
    alone = [detection_loss(out[i : i + 1], boxes[i : i + 1], labels[i : i + 1], 8) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert len(set(together.tolist())) == 9


def test_loss_by_hand() -> None:
    """One cell, one class, the box hit exactly: only the focal loss is left; half a box beside it costs its GIoU."""
    out = torch.zeros(1, 5, 1, 1)
    boxes, labels = pad_targets([torch.tensor([[0.0, 0, 8, 8]])], [torch.tensor([0])], 1)
    out[0, 3:] = torch.log(torch.tensor(0.5))  # twice a cell is where a new network starts
    focal = 0.5 * 0.25 * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(detection_loss(out, boxes, labels, 8, expected_positives=4.0), focal[None] / 4)
    boxes[..., 2] = 4
    torch.testing.assert_close(
        detection_loss(out, boxes, labels, 8, expected_positives=1.0, box_weight=2.0), (focal + 2 * 0.5)[None]
    )
    torch.testing.assert_close(
        detection_loss(out, boxes, torch.full_like(labels, PADDING), 8, expected_positives=1.0), focal[None]
    )


def test_huge_outputs_have_finite_gradients() -> None:
    out = torch.full((1, 5, 2, 2), 1e4, requires_grad=True)
    boxes, labels = pad_targets([torch.tensor([[0.0, 0, 8, 8]])], [torch.tensor([0])], 1)
    (grad,) = torch.autograd.grad(detection_loss(out, boxes, labels, 8).sum(), out)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("stride", [4, 8])
def test_clipped_sum_is_that_of_a_plain_loop(stride: int) -> None:
    images, boxes, labels = scenes(7)
    net = detector(stride=stride)

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return detection_loss(module(x), y[..., :4], y[..., 4].long(), stride).mean()

    targets = torch.cat([boxes, labels[..., None]], -1)
    gradients = unit_gradients(net, loss, images, targets)
    norms = [float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients]
    bound = sum(norms) / 7
    assert min(norms) < bound < max(norms)
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(net))
    with GradientEngine(net, Clipping(bound), noise_multiplier=0.0, expected_batch_size=7) as engine:
        engine.backward(loss(net, images, targets), 7)
        found = engine.clipped_sum()
    assert relative_error(found, truth) < 1e-4


# --- decoding -----------------------------------------------------------------------------------------------
def test_iou_of_known_boxes() -> None:
    """The library's, whose word is taken for it: half of a square, a corner, apart, the same."""
    one = torch.tensor([[0.0, 0, 2, 2]])
    others = torch.tensor([[0.0, 0, 2, 1], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2]])
    torch.testing.assert_close(ops.box_iou(one, others)[0], torch.tensor([0.5, 1 / 7, 0, 1]))
    # apart: 0 - (36 - 5) / 36
    torch.testing.assert_close(ops.generalized_box_iou(one, others)[0, 2], torch.tensor(-31 / 36))


def test_the_higher_score_stays_and_the_order_is_that_of_scores() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 10, 10]])
    found = Detections(boxes, torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([0, 0, 0, 1]))
    kept = suppress(found, 0.5)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert kept.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(kept.boxes, boxes[[1, 3, 2]])
    assert suppress(found, 0.5, class_agnostic=True).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(suppress(found, 0.99).scores) == 4
    with pytest.raises(PrivacyConfigError, match="iou_threshold=2"):
        suppress(found, 2.0)


def test_decoding_gives_back_what_was_assigned() -> None:
    """Outputs that say exactly the targets are decoded to the boxes."""
    boxes, labels = pad_targets(
        [torch.tensor([[3.0, 5, 25, 30], [40, 40, 64, 52]]), torch.zeros(0, 4)],
        [torch.tensor([2, 0]), torch.zeros(0)],
        3,
    )
    target = assign(boxes, labels, 8, 8, 8)
    out = torch.full((2, 7, 8, 8), -9.0)
    out[:, :3] = torch.where(target.labels[:, None] == torch.arange(3)[:, None], 9.0, -9.0).reshape(2, 3, 8, 8)
    centres = boxes_of_cells(torch.zeros(1, 4, 8, 8), 8)[0].reshape(64, 2, 2).mean(1)
    middle, size = (target.boxes[..., :2] + target.boxes[..., 2:]) / 2, target.boxes[..., 2:] - target.boxes[..., :2]
    out[:, 3:5] = ((middle - centres) / 8).transpose(1, 2).reshape(2, 2, 8, 8)
    out[:, 5:] = (size / 16).log().transpose(1, 2).reshape(2, 2, 8, 8)
    first, second = decode(out, 8, score_threshold=0.5)
    assert len(second.scores) == 0
    order = first.labels.argsort()
    assert first.labels[order].tolist() == [0, 2]
    torch.testing.assert_close(first.boxes[order], boxes[0, [1, 0]])
    assert len(decode(out, 8, score_threshold=0.5, max_detections=1)[0].scores) == 1


def test_boxes_are_cut_at_the_border() -> None:
    out = torch.zeros(1, 5, 2, 2)
    out[:, 3:] = 3.0
    (found,) = decode(out, 8)
    assert found.boxes.tolist() == [[0, 0, 16, 16]]


def test_it_learns() -> None:
    """A bright square and a dark one on grey: both are found where they are."""
    torch.manual_seed(0)
    make = torch.Generator().manual_seed(0)
    images, corners = torch.full((32, 3, 32, 32), 0.5), torch.randint(0, 17, (32, 2), generator=make)
    labels = (torch.arange(32) % 2)[:, None]
    for image, (y, x), label in zip(images, corners, labels, strict=True):
        image[:, y : y + 14, x : x + 14] = float(label)
    boxes = torch.stack([corners[:, 1], corners[:, 0], corners[:, 1] + 14, corners[:, 0] + 14], 1)[:, None].float()
    net = AnchorFreeDetector(2, width=8, prior=0.1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        detection_loss(net(images), boxes, labels, 8).mean().backward()
        optimizer.step()
    with torch.no_grad():
        found = decode(net(images), 8, score_threshold=0.3)
    best = [
        ops.box_iou(one.boxes[:1], box)[0, 0] if len(one.scores) else torch.tensor(0.0)
        for one, box in zip(found, boxes, strict=True)
    ]
    right = [len(one.labels) > 0 and int(one.labels[0]) == int(label) for one, label in zip(found, labels, strict=True)]
    assert sum(right) >= 30
    assert float(torch.stack(best).median()) > 0.6

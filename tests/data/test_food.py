"""Food: label files, saturation, drawn scenes with the data set's counts, and the reader of the real folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_dp.data import FoodScenesDataModule, OktoberfestFoodDataModule
from lightning_dp.data.food import (
    FOOD_CLASSES,
    LabelledImage,
    Scenes,
    make_scenes,
    normalise_saturation,
    read_food_labels,
    read_voc,
    write_food_labels,
)
from lightning_dp.data.food.classes import NUM_BOXES, NUM_IMAGES
from lightning_dp.data.food.composition import counts_for, deal
from lightning_dp.data.food.saturation import saturation
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.models.detection import check_targets
from tests.recipes.sprites import sprites

# --- label files --------------------------------------------------------------------------------------------
boxes_of_an_image = st.lists(
    st.tuples(st.integers(0, 14), *[st.integers(0, 2000)] * 2, *[st.integers(1, 2000)] * 2), max_size=6
)


@settings(max_examples=50, deadline=None)
@given(st.lists(boxes_of_an_image, max_size=4))
def test_label_files_are_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, images: list[Any]) -> None:
    path = tmp_path_factory.mktemp("labels") / "files.txt"
    text = "".join(
        " ".join(map(str, [f"{i}.jpg", len(one), *(value for box in one for value in box)])) + "\n"
        for i, one in enumerate(images)
    )
    path.write_text(text)
    found = read_food_labels(path)
    write_food_labels(path, found)
    assert path.read_text() == text
    assert [len(one.labels) for one in found] == [len(one) for one in images]


def test_corner_and_size_become_two_corners(tmp_path: Path) -> None:
    (tmp_path / "files.txt").write_text("a.jpg 2 3 10 20 5 6 0 0 0 1 1\n\nb.jpg 0\n")
    first, second = read_food_labels(tmp_path / "files.txt")
    assert first.boxes.tolist() == [[10, 20, 15, 26], [0, 0, 1, 1]]
    assert first.labels.tolist() == [3, 0]
    assert (second.name, second.boxes.shape, second.labels.shape) == ("b.jpg", (0, 4), (0,))


@pytest.mark.parametrize(
    "line, message",
    [
        ("a.jpg 2 3 10 20 5 6", "line 2: 2 objects take 10 numbers, there are 5"),
        ("a.jpg 1 15 10 20 5 6", r"classes \[15\] must lie in 0 .. 14"),
        ("a.jpg 1 3 10 20 0 6", "no width"),
        ("a.jpg", "expected `name n`"),
        ("a.jpg x", "expected `name n`"),
        ("a b.jpg 1 3 10 20 5 6", "a name has no spaces"),
        ("a.jpg -1", "-1 objects"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "files.txt").write_text(f"good.jpg 0\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_food_labels(tmp_path / "files.txt")


def test_missing_file_and_unwritable_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no label file"):
        read_food_labels(tmp_path / "files.txt")
    for name in ("a b.jpg", "", " a.jpg"):
        with pytest.raises(ValueError, match="without spaces"):
            write_food_labels(tmp_path / "x", [LabelledImage(name, np.zeros(0, int), np.zeros((0, 4), np.float32))])


def test_voc(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<annotation><filename>a.jpg</filename><object><name>Cola</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    found = read_voc(path, [one.name for one in FOOD_CLASSES])
    assert (found.name, found.labels.tolist(), found.boxes.tolist()) == ("a.jpg", [3], [[0, 1, 10, 20]])
    with pytest.raises(ValueError, match="object 'Cola'; the classes are Bier, Wasser"):
        read_voc(path, ["Bier", "Wasser"])
    path.write_text(path.read_text().replace("<xmin>1</xmin>", ""))
    with pytest.raises(ValueError, match="lacks one of xmin"):
        read_voc(path, ["Cola"])
    path.write_text("no xml")
    with pytest.raises(ValueError, match="no XML file"):
        read_voc(path, ["Cola"])


# --- saturation ---------------------------------------------------------------------------------------------
def colours(n: int, low: float, high: float) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return (rng.uniform(low, high, (n, 24, 24, 3)) * 255).astype(np.uint8)


@pytest.mark.parametrize("low, high", [(0.4, 0.6), (0.3, 0.9), (0.0, 1.0)])
def test_mean_saturation_is_114(low: float, high: float) -> None:
    images = colours(3, low, high)
    found = normalise_saturation(images)
    assert found.dtype == np.uint8
    # rounding to whole colours moves a dark pixel's saturation by up to 255/value, but no mean by much
    np.testing.assert_allclose(saturation(found).mean((1, 2)), 114, atol=1.0)
    assert (found.max(-1) == images.max(-1)).all()
    # each image by itself
    assert (normalise_saturation(images[1]) == found[1]).all()


def test_hue_stays_and_grey_stays_grey() -> None:
    from colorsys import rgb_to_hsv

    images = colours(1, 0.4, 0.7)
    found = normalise_saturation(images)
    before, after = (np.array([rgb_to_hsv(*pixel)[0] for pixel in i[0, 0] / 255.0]) for i in (images, found))
    vivid = saturation(images)[0, 0] > 60
    turned = np.abs(before - after)[vivid]
    assert np.minimum(turned, 1 - turned).max() < 0.02
    grey = np.full((4, 4, 3), 90, dtype=np.uint8)
    assert (normalise_saturation(grey) == grey).all()
    grey[0, 0] = (200, 10, 10)  # one pixel with a colour cannot lift the mean: it gets all it can
    assert normalise_saturation(grey)[0, 0].tolist() == [200, 0, 0]


def test_bad_images_are_named() -> None:
    with pytest.raises(ValueError, match="RGB, uint8"):
        normalise_saturation(np.zeros((4, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="RGB, uint8"):
        normalise_saturation(np.zeros((4, 4, 3), dtype=np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean=300"):
        normalise_saturation(np.zeros((4, 4, 3), dtype=np.uint8), 300)


# --- scenes -------------------------------------------------------------------------------------------------
def test_the_published_counts_add_up() -> None:
    assert sum(one.boxes for one in FOOD_CLASSES) == NUM_BOXES
    assert len({one.emoji for one in FOOD_CLASSES}) == len(FOOD_CLASSES) == 15


def test_the_data_set_s_own_size_has_its_own_counts() -> None:
    counts = deal(NUM_IMAGES, 12, np.random.default_rng(0))
    assert counts.sum() == NUM_BOXES
    assert (counts > 0).sum(0).tolist() == [one.images for one in FOOD_CLASSES]
    assert counts.sum(0).tolist() == [one.boxes for one in FOOD_CLASSES]
    assert counts.sum(1).min() >= 1
    assert counts.sum(1).max() <= 12


@pytest.mark.parametrize("n", [10, 37, 300])
def test_other_sizes_keep_the_proportions(n: int) -> None:
    counts = deal(n, 12, np.random.default_rng(1))
    images, boxes = counts_for(n)
    assert ((counts > 0).sum(0) == images).all()
    assert (counts.sum(0) == boxes).all()
    assert counts.sum(1).min() >= 1
    if n >= 300:
        assert counts.sum() / n == pytest.approx(2.43, abs=0.05)


def test_too_few_scenes_or_places_are_named() -> None:
    with pytest.raises(PrivacyConfigError, match="take 10 or more"):
        deal(9, 12, np.random.default_rng(0))
    with pytest.raises(PrivacyConfigError, match="raise max_boxes"):
        deal(40, 2, np.random.default_rng(0))


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return make_scenes(sprites(), 60, seed=3)


def test_scenes_are_a_function_of_the_seed(scenes: Scenes) -> None:
    for one, other in zip(scenes, make_scenes(sprites(), 60, seed=3), strict=True):
        assert (one == other).all()
    assert not (make_scenes(sprites(), 60, seed=4).images == scenes.images).all()


def test_boxes_lie_in_their_scenes_on_whole_pixels(scenes: Scenes) -> None:
    check_targets(torch.from_numpy(scenes.boxes), torch.from_numpy(scenes.labels), 15, 64, 64)
    assert (scenes.boxes == np.rint(scenes.boxes)).all()
    assert (scenes.boxes[scenes.labels < 0] == 0).all()
    assert scenes.images.shape == (60, 64, 64, 3)
    assert scenes.images.dtype == np.uint8


def test_what_a_box_holds_is_its_object() -> None:
    """Day scenes: the colour at the middle of a box that nothing hides is the sprite's."""
    scenes = make_scenes(sprites(), 60, night_fraction=0.0, seed=5)
    seen = 0
    for image, boxes, labels in zip(scenes.images, scenes.boxes, scenes.labels, strict=True):
        if (labels >= 0).sum() == 1:
            x, y = ((boxes[0, :2] + boxes[0, 2:]) / 2).astype(int)
            wanted = sprites()[labels[0], 32, 32, :3].astype(float)
            colour = image[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            # up to 15 % of light and the camera's noise apart
            assert np.abs(colour - wanted).max() < 60, (labels[0], colour, wanted)
            seen += 1
    assert seen > 10


def test_night_is_dark_and_grey_and_as_frequent_as_asked(scenes: Scenes) -> None:
    assert scenes.night.sum() == 30
    day, night = scenes.images[scenes.night == 0], scenes.images[scenes.night == 1]
    assert night.mean() < 0.75 * day.mean()
    spread = [(i.max(-1).astype(int) - i.min(-1)).mean() for i in (day, night)]
    assert spread[1] < 0.6 * spread[0]
    assert make_scenes(sprites(), 20, night_fraction=0.25).night.sum() == 5


def test_bad_sprites_are_named() -> None:
    with pytest.raises(PrivacyConfigError, match="RGBA"):
        make_scenes(sprites()[:3], 20)
    with pytest.raises(PrivacyConfigError, match="night_fraction=2"):
        make_scenes(sprites(), 20, night_fraction=2)
    clear = sprites()
    clear[..., 3] = 0
    with pytest.raises(PrivacyConfigError, match="transparent"):
        make_scenes(clear, 20)


# --- data modules -------------------------------------------------------------------------------------------
class Drawn(FoodScenesDataModule):
    """Drawn with made-up pictures: the npm packages are not everywhere."""

    asked: list[str]

    def sprites(self, vendor: str) -> NDArray[np.uint8]:
        self.asked = [*getattr(self, "asked", []), vendor]
        return sprites(shifted=vendor == "twitter")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))


def drawn(**changed: Any) -> Drawn:
    return Drawn(**{"n_train": 30, "n_val": 10, "n_test": 12, "batch_size": 8, **changed})


def test_batches_are_plain_tensors() -> None:
    data = drawn()
    data.prepare_data()
    data.setup()
    images, boxes, labels, night = next(iter(data.train_dataloader()))
    assert (images.shape, boxes.shape, labels.shape, night.shape) == ((8, 3, 64, 64), (8, 12, 4), (8, 12), (8,))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert sum(len(batch[0]) for batch in data.val_dataloader()) == 10
    assert sum(len(batch[0]) for batch in data.test_dataloader()) == 12
    assert not data.card.real
    assert "stand-in" in str(data.card)


def test_the_shift_changes_the_test_part_only() -> None:
    same, shifted = drawn().arrays(), drawn(test_vendor="twitter").arrays()
    assert (same["train/images"] == shifted["train/images"]).all()
    assert (same["test/labels"] == shifted["test/labels"]).all()
    assert not (same["test/images"] == shifted["test/images"]).all()
    data = drawn(test_vendor="twitter")
    data.arrays()
    assert data.asked == ["google", "google", "twitter"]


def test_parts_are_drawn_apart_and_the_nights_of_training_can_be_left_out() -> None:
    found = drawn(n_val=30, night_fraction=0.0).arrays()
    assert found["train/night"].sum() == 0
    assert found["test/night"].sum() == 6
    assert not (found["val/labels"] == found["train/labels"]).all()


def test_saturation_can_be_brought_to_one_level() -> None:
    found = drawn(saturation=True, n_val=0).arrays()
    plain = drawn(n_val=0).arrays()
    means = saturation(found["test/images"]).mean((1, 2))
    assert np.abs(means - 114).max() < 3
    assert np.ptp(saturation(plain["test/images"]).mean((1, 2))) > 20


def test_written_scenes_are_what_the_real_reader_reads(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    data = drawn()
    data.write(tmp_path / "root" / "train", "train")
    data.write(tmp_path / "root" / "test", "test")
    real = OktoberfestFoodDataModule(tmp_path / "root", batch_size=4, size=64, max_boxes=12)
    found, drawn_arrays = real.arrays(), data.arrays()
    for part in ("train", "test"):
        for name in ("images", "boxes", "labels"):
            np.testing.assert_array_equal(found[f"{part}/{name}"], drawn_arrays[f"{part}/{name}"])
    real.prepare_data()
    real.setup()
    images, boxes, labels = next(iter(real.train_dataloader()))
    assert (images.shape, boxes.shape, labels.shape) == ((4, 3, 64, 64), (4, 12, 4), (4, 12))


def real_folder(root: Path, text: str = "{name} 1 3 10 10 40 20\n", n: int = 3) -> Path:
    """``n`` white images of 100 x 50 in the data set's form."""
    image = pytest.importorskip("PIL.Image")
    root.mkdir()
    for i in range(n):
        image.new("RGB", (100, 50), "white").save(root / f"{i}.png")
    (root / "files.txt").write_text("".join(text.format(name=f"{i}.png") for i in range(n)))
    return root


def test_real_images_are_resized_with_their_boxes_and_split(tmp_path: Path) -> None:
    data = OktoberfestFoodDataModule(real_folder(tmp_path / "a"), size=64, val_size=1, test_size=1)
    found = data.arrays()
    assert found["train/images"].shape == (1, 64, 64, 3)
    np.testing.assert_allclose(found["train/boxes"][0, 0], [6.4, 12.8, 32, 38.4], rtol=1e-6)
    assert [len(found[f"{part}/labels"]) for part in ("train", "val", "test")] == [1, 1, 1]
    assert data.card.real


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give root="):
        OktoberfestFoodDataModule(tmp_path / "nowhere").prepare_data()
    with pytest.raises(PrivacyConfigError, match="leave none to train on"):
        OktoberfestFoodDataModule(real_folder(tmp_path / "a"), test_size=3).prepare_data()
    over = real_folder(tmp_path / "b", "{name} 1 3 10 10 95 20\n")
    with pytest.raises(ValueError, match=r"0.png.*reaches outside the image of 100 x 50 pixels.*clip_boxes=True"):
        OktoberfestFoodDataModule(over, test_size=0).arrays()
    found = OktoberfestFoodDataModule(over, test_size=0, clip_boxes=True, size=64).arrays()
    assert found["train/boxes"][0, 0, 2] == 64
    (over / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="1.png, which is not there"):
        OktoberfestFoodDataModule(over, test_size=0, clip_boxes=True).arrays()
    many = real_folder(tmp_path / "c", "{name} 2 3 10 10 9 9 3 1 1 9 9\n")
    with pytest.raises(ValueError, match="0.png has 2 boxes.*raise max_boxes"):
        OktoberfestFoodDataModule(many, test_size=0, max_boxes=1).arrays()
    away = real_folder(tmp_path / "d", "{name} 1 3 200 10 20 20\n")
    with pytest.raises(ValueError, match="no area.*lies outside altogether"):
        OktoberfestFoodDataModule(away, test_size=0, clip_boxes=True).arrays()
    (away / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png cannot be read as a picture"):
        OktoberfestFoodDataModule(away, test_size=0, max_boxes=2).arrays()
    with pytest.raises(PrivacyConfigError, match="below 0"):
        OktoberfestFoodDataModule(many, val_size=-1, test_size=1).prepare_data()
    with pytest.raises(ValueError, match="0.png has two lines"):
        OktoberfestFoodDataModule(real_folder(tmp_path / "e", "0.png 0\n")).prepare_data()
    for kind in (lambda: drawn(size=60), lambda: OktoberfestFoodDataModule(over, size=60)):
        with pytest.raises(PrivacyConfigError, match="divisible by 8"):
            kind()

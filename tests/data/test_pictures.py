"""Pictures as samples, CIFAR in both its forms, and emoji by category: on tiny files in the real formats."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dp import DPStrategy, PrivacyConfigError
from lightning_dp.data import CIFARDataModule, EmojiDataModule
from lightning_dp.data.cifar import read_cifar
from lightning_dp.data.emoji import EmojiImages
from lightning_dp.data.emoji_categories import identities
from lightning_dp.data.pictures import PictureDataset

# --- pictures ---------------------------------------------------------------------------------------------------------


def test_bytes_become_numbers_between_minus_one_and_one() -> None:
    pictures = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    data = PictureDataset([pictures, np.array([3])])
    picture, label = data[0]
    torch.testing.assert_close(picture.flatten(), torch.linspace(-1, 1, 256))
    assert label == 3


def test_each_view_is_a_shifted_or_mirrored_picture() -> None:
    """Found again among all of them; the label stays, and the pictures in store do not change."""
    torch.manual_seed(0)
    pictures = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    plain, moved = PictureDataset([pictures]), PictureDataset([pictures], augment=True)
    padded = torch.nn.functional.pad(plain[0][0], [2] * 4, mode="reflect")
    crops = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    views = [moved[0][0] for _ in range(60)]
    every = crops + [crop.flip(-1) for crop in crops]
    seen = [next(k for k, one in enumerate(every) if torch.equal(one, view)) for view in views]
    assert len(set(seen)) > 20
    assert min(seen) < 25 <= max(seen)
    assert torch.equal(plain[0][0], moved.tensors[0][0].float() / 127.5 - 1)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def write_cifar(folder: Path, classes: int, form: str, n: int = 10) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Files with the names, the keys and the layout of the authors' archives."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, found = np.random.default_rng(classes), {}
    suffix = "" if form == "pickle" else ".bin"
    names = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
    if classes == 100:
        names = {"train": ["train"], "test": ["test"]}
    for part, stems in names.items():
        images = rng.integers(0, 256, (len(stems), n, 3072), dtype=np.uint8)
        labels = np.arange(len(stems) * n).reshape(len(stems), n) % classes
        for stem, image, label in zip(stems, images, labels, strict=True):
            path = folder / f"{stem}{suffix}"
            if form == "pickle":
                key = b"labels" if classes == 10 else b"fine_labels"
                path.write_bytes(pickle.dumps({b"data": image, key: label.tolist(), b"batch_label": b"x"}, protocol=2))
            else:
                heads = [label] if classes == 10 else [np.full(n, 19), label]
                path.write_bytes(np.hstack([np.stack(heads, 1), image]).astype(np.uint8).tobytes())
        found[part] = images.reshape(-1, 3, 32, 32), labels.reshape(-1)
    return found


FOLDERS = {(10, "pickle"): "cifar-10-batches-py", (10, "binary"): "cifar-10-batches-bin"} | {
    (100, "pickle"): "cifar-100-python",
    (100, "binary"): "cifar-100-binary",
}


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("classes, form", FOLDERS)
def test_cifar_in_both_forms(tmp_path: Path, classes: Any, form: str, above: bool) -> None:
    truth = write_cifar(tmp_path / FOLDERS[classes, form] if above else tmp_path, classes, form)
    module = CIFARDataModule(tmp_path, classes, batch_size=4)
    module.prepare_data()
    module.setup()
    for part, loader in (("train", module.train_dataloader()), ("test", module.test_dataloader())):
        images, labels = loader.dataset.tensors
        np.testing.assert_array_equal(images.numpy(), truth[part][0])
        np.testing.assert_array_equal(labels.numpy(), truth[part][1])
    pictures, labels = next(iter(module.train_dataloader()))
    assert (pictures.shape, pictures.dtype, labels.dtype) == ((4, 3, 32, 32), torch.float32, torch.int64)
    assert module.num_classes == classes


def test_cifar_validation_is_held_out_and_only_training_is_moved(tmp_path: Path) -> None:
    write_cifar(tmp_path, 10, "pickle")
    module = CIFARDataModule(tmp_path, val_size=10, augment=True)
    module.setup()
    train, val = module.train_dataloader().dataset, module.val_dataloader().dataset
    assert (len(train), len(val)) == (40, 10)
    assert (train.augment, val.augment, module.test_dataloader().dataset.augment) == (True, False, False)
    assert not {x.numpy().tobytes() for x in train.tensors[0]} & {x.numpy().tobytes() for x in val.tensors[0]}


def python_2_pickle(image: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and NumPy 1 wrote, and what the authors' archive is: old module names, bytes as text."""
    content = pickle.dumps({"data": image, "labels": labels}, protocol=2)
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def test_old_pickles_are_read_without_a_warning(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}").write_bytes(python_2_pickle(image, [k, 0, 9]))
    images, labels = read_cifar(tmp_path, 10, "train")
    np.testing.assert_array_equal(images[:3].reshape(3, -1), image)
    assert list(labels[:3]) == [1, 0, 9]


class Harmful:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("form", ["code", "codec"])
def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path, form: str) -> None:
    import codecs

    mark = tmp_path / "ran"
    harmful = Harmful(Path.touch, mark) if form == "code" else Harmful(codecs.encode, "x", "rot13")
    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}").write_bytes(pickle.dumps({b"data": harmful, b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match="could run code|is refused"):
        read_cifar(tmp_path, 10, "train")
    assert not mark.exists()


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="choose 10 or 100"):
        CIFARDataModule(classes=20)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python/train or cifar-100-binary/train\.bin.*root="):
        read_cifar(tmp_path, 100, "train")
    (tmp_path / "train.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut short"):
        read_cifar(tmp_path, 100, "train")
    for content, message in (
        (b"\x80\x02nothing", "cannot be read"),
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"fine_labels": [0, 1]}), "no file of CIFAR-100"),
    ):
        (tmp_path / "train").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_cifar(tmp_path, 100, "train")
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [100]}, 2))
    with pytest.raises(ValueError, match="the label 100"):
        read_cifar(tmp_path, 100, "train")


# --- emoji by category ------------------------------------------------------------------------------------------------

CATEGORIES = ("Activities", "Component", "Flags", "Food & Drink")


def emoji(vendors: tuple[str, ...] = ("google", "twitter"), per_category: int = 10) -> EmojiImages:
    """Code points of one colour, the first of each category with a skin tone; two flags of one vendor look the same."""
    rows = []
    for v, vendor in enumerate(vendors):
        for c, category in enumerate(CATEGORIES):
            for i in range(per_category):
                base = f"{c}{i:02d}"
                for tone in ("", "-1F3FB") if i == 0 else ("",):
                    image = np.zeros((64, 64, 4), np.uint8)
                    image[16:48, 16:48] = (20 * c + 80 * v, 12 * i, 100 * bool(tone), 255)
                    if category == "Flags" and i == 1 and vendor == "google":
                        image = rows[-1][0].copy()
                    rows.append((image, base + tone, base, category, "sub", f"name{base}", vendor))
    images, *texts = zip(*rows, strict=True)
    return EmojiImages(np.stack(images), *(np.array(text) for text in texts))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_dp.data.emoji_categories.read_emoji", lambda vendors, root: emoji(tuple(vendors)))


def parts(**options: Any) -> dict[str, Any]:
    module = EmojiDataModule(test_fraction=0.3, **options)
    module.setup()
    return module._sets


def test_pictures_of_one_code_point_and_equal_pictures_are_one_unit() -> None:
    found, data = identities(emoji()), emoji()
    by_base = {base: set(found[data.base == base]) for base in data.base}
    assert all(len(ids) == 1 for ids in by_base.values())
    assert by_base["200"] == by_base["201"]  # they look the same at one vendor, so that they are one at the other too
    assert len(set(found)) == 4 * 10 - 1


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("tones", [False, True])
def test_no_unit_and_no_picture_is_on_two_sides(tones: bool) -> None:
    found = parts(val_fraction=0.2, tones=tones)
    assert set(found) == {"train", "val", "test"}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(found[one].unit_id) & set(found[other].unit_id)
        images = [{x.numpy().tobytes() for x in found[part].tensors[0]} for part in (one, other)]
        assert not images[0] & images[1]
    assert len({*found["train"].unit_id, *found["val"].unit_id, *found["test"].unit_id}) == 29  # three categories left
    assert set(found["train"].tensors[1].tolist()) == {0, 1, 2}
    assert len(found["train"]) + len(found["val"]) + len(found["test"]) >= 60
    # A skin tone is a further picture of a unit in training, and stays out of what is evaluated.
    _, rows = np.unique(found["train"].unit_id, return_counts=True)
    assert (rows.max() > 4 or 4 in rows) if tones else True


@pytest.mark.usefixtures("made_up")
def test_trained_on_one_vendor_and_tested_on_another() -> None:
    found = parts(vendors=("google",), test_vendors=("twitter",))
    truth = emoji()
    for part, vendor in (("train", "google"), ("test", "twitter")):
        picture = found[part].tensors[0][0, :, 16, 16].tolist()  # the middle, of one colour
        assert picture in truth.images[truth.vendor == vendor][:, 32, 32, :3].tolist()
        assert picture not in truth.images[truth.vendor != vendor][:, 32, 32, :3].tolist()
    assert not set(found["train"].unit_id) & set(found["test"].unit_id)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("size", [64, 32, 16])
def test_pictures_lie_on_a_flat_background_and_are_averaged(size: int) -> None:
    white = parts(size=size)["train"]
    assert white[0][0].shape == (3, size, size)
    assert (white.tensors[0][:, :, 0, 0] == 255).all()
    random = parts(size=size, background="random")["train"].tensors[0]
    assert len({tuple(row) for row in random[:, :, 0, 0].tolist()}) > 0.9 * len(random)
    assert (random[:, :, 0, 0] == random[:, :, -1, -1]).all()  # flat
    assert torch.equal(random, parts(size=size, background="random")["train"].tensors[0])  # the same every time


@pytest.mark.usefixtures("made_up")
def test_a_strategy_protects_code_points() -> None:
    from lightning_dp.models import ResNet9
    from tests.strategies.helpers import Tiny, trainer

    module = EmojiDataModule(test_fraction=0.3, batch_size=8, size=16)
    strategy = DPStrategy(noise_multiplier=1.0, unit="unit_id")
    trainer(strategy, fast_dev_run=1).fit(Tiny(net=ResNet9(3, width=4)), module)
    units = len(set(module.train_dataloader().dataset.unit_id))
    assert strategy.settings().sample_rate == pytest.approx(8 / units)
    assert len(module.train_dataloader().dataset) > units


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 20}, "choose 64, 32 or 16"),
        ({"background": "black"}, "choose 'white' or 'random'"),
        ({"test_fraction": 0.0}, "leave some to train on"),
        ({"test_fraction": 0.6, "val_fraction": 0.5}, "leave some to train on"),
    ],
)
def test_emoji_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacyConfigError, match=message):
        EmojiDataModule(**options)
    assert "stand-in" in str(EmojiDataModule.card)
    assert "simulated" in str(EmojiDataModule.card)

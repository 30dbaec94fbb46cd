from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_dp.data import ChestXRayFolderDataModule
from lightning_dp.errors import PrivacyConfigError
from tests.data.chest_xray.test_tables import HEADER

image = pytest.importorskip("PIL.Image")
OWN = "image,patient,sex,age,mass,edema\na.png,p1,F,29,1,0\nb.png,p2,male,030Y,0,0\nc.png,p3,m,81,0,1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image.fromarray(values).save(tmp_path / "images" / "a.png")
    image.fromarray(np.stack([values] * 3, 2)).save(tmp_path / "images" / "b.png")  # colour
    image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "images" / "c.png")  # 16 bits
    (tmp_path / "labels.csv").write_text(OWN)
    return tmp_path


def three(root: Path, **settings: Any) -> ChestXRayFolderDataModule:
    defaults: dict[str, Any] = {"findings": ["mass", "edema"], "image_size": 8, "val_share": 0.3, "test_share": 0.3}
    return ChestXRayFolderDataModule(root, **{**defaults, "batch_size": 1, **settings})


def every(data: ChestXRayFolderDataModule) -> dict[tuple[float, ...], tuple[np.ndarray, list[int]]]:
    data.prepare_data()
    data.setup()
    found = {}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels, levels in loader:
            found[tuple(labels[0].tolist())] = (images[0].numpy(), levels[0].tolist())
    return found


def test_three_hand_made_samples_are_read(root: Path) -> None:
    found = every(three(root))
    assert set(found) == {(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)}
    assert [found[key][1] for key in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))] == [[0, 0], [1, 1], [1, 4]]
    expected = np.arange(64).reshape(8, 8) * 4 / 255
    for picture, _ in found.values():
        assert picture.shape == (3, 8, 8)
        np.testing.assert_allclose(picture, np.broadcast_to(expected, (3, 8, 8)), atol=0.003)


def test_pictures_take_the_size_and_the_channels_asked_for(root: Path) -> None:
    picture, _ = every(three(root, image_size=5, channels=1))[(1.0, 0.0)]
    assert picture.shape == (1, 5, 5)
    assert picture.dtype == np.float32


def test_the_nih_format_is_read_as_downloaded(root: Path) -> None:
    (root / "labels.csv").write_text(
        HEADER
        + "".join(
            f"{name}.png,{found},0,{n},40,{sex},PA,1,1,0.1,0.1\n"
            for n, (name, found, sex) in enumerate(
                [("a", "Mass|Edema", "F"), ("b", "No Finding", "M"), ("c", "Edema", "M")]
            )
        )
    )
    assert set(every(three(root, findings=["Mass", "Edema"]))) == {(1.0, 1.0), (0.0, 0.0), (0.0, 1.0)}


def test_no_patient_is_in_two_parts(root: Path) -> None:
    for i in range(80):
        (root / f"{i}.png").write_bytes((root / "images" / "a.png").read_bytes())
    rows = [f"{i}.png,p{i // 4},F,40,0,1" for i in range(80)]
    (root / "labels.csv").write_text("image,patient,sex,age,mass,edema\n" + "\n".join(rows) + "\n")
    arrays = three(root).arrays()
    owners = [set(arrays[f"{part}/unit_id"]) for part in ("train", "val", "test")]
    assert [len(found) for found in owners] == [8, 6, 6]
    assert len(set().union(*owners)) == 20
    assert sum(len(arrays[f"{part}/labels"]) for part in ("train", "val", "test")) == 80


def test_the_data_set_names_its_owners(root: Path) -> None:
    data = three(root)
    data.setup()
    assert len(data.train_dataloader().dataset.unit_id) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text, message",
    [
        (OWN.replace("patient", "who"), r"no column patient \(or 'Patient ID'\)"),
        (OWN.replace("edema", "oedema"), "no column edema.*findings="),
        (OWN.replace("p2", " "), "line 3: the patient is missing"),
        (OWN.replace("male", "unknown"), "line 3: sex 'unknown'"),
        (OWN.replace("81", ""), "line 4: age ''"),
        (OWN.replace("81", "810"), "line 4: age '810'"),
        (OWN.replace("29,1,0", "29,-1,0"), "line 2: mass is '-1'; a label is 0 or 1"),
        (OWN.splitlines()[0] + "\n", "has no rows"),
        ("\n".join(OWN.splitlines()[:3]), "2 patients are too few"),
        (OWN.replace("c.png", "a.png"), "line 4: 'a.png' is already in line 2"),
        (OWN.replace("c.png", "images/a.png"), "line 4: 'images/a.png' is already in line 2"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(text: str, message: str, root: Path) -> None:
    (root / "labels.csv").write_text(text)
    with pytest.raises(PrivacyConfigError, match=message):
        three(root).prepare_data()


def test_a_finding_that_the_nih_table_does_not_know_is_refused(root: Path) -> None:
    rows = [f"{name}.png,No Finding,0,{n},40,F,PA,1,1,0.1,0.1\n" for n, name in enumerate("abc")]
    (root / "labels.csv").write_text(HEADER + "".join(rows))
    three(root, findings=["Mass", "edema"]).prepare_data()  # nobody has them here, but the table may hold them
    with pytest.raises(PrivacyConfigError, match="knows no Oedema. Choose from Atelectasis"):
        three(root, findings=["Mass", "Oedema"]).prepare_data()


def test_pictures_of_one_name_are_told_apart_by_their_folders(root: Path) -> None:
    for n, name in enumerate("abc"):
        (root / f"p{n}").mkdir()
        picture = image.open(root / "images" / f"{name}.png").convert("L")
        picture.point(lambda value, n=n: 10 * n).save(root / f"p{n}" / "view.JPG", format="jpeg")
    text = OWN
    for n, name in enumerate("abc"):
        text = text.replace(f"{name}.png", f"p{n}/view.JPG")
    (root / "labels.csv").write_text(text)
    means = {key: picture.mean() * 255 for key, (picture, _) in every(three(root)).items()}
    assert means == {
        (1, 0): pytest.approx(0, abs=1),
        (0, 0): pytest.approx(10, abs=1),
        (0, 1): pytest.approx(20, abs=1),
    }
    (root / "labels.csv").write_text(text.replace("p1/view", "view"))
    with pytest.raises(PrivacyConfigError, match="line 3: 3 pictures are called 'view.JPG'.*give the path"):
        three(root).prepare_data()


def test_missing_files_are_named(root: Path) -> None:
    (root / "images" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 4: there is no picture 'c.png'"):
        three(root).prepare_data()
    with pytest.raises(FileNotFoundError, match="table= the name of the csv file"):
        three(root, table="other.csv").prepare_data()


def test_a_damaged_picture_is_named(root: Path) -> None:
    (root / "images" / "a.png").write_bytes(b"nothing")
    with pytest.raises(PrivacyConfigError, match="a.png cannot be read"):
        every(three(root))


@pytest.mark.parametrize("wrong", [{"findings": []}, {"channels": 2}, {"test_share": 0.0}, {"val_share": 1.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], root: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="findings="):
        three(root, **wrong)

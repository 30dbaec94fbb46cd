from __future__ import annotations

import gzip
import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.data.chest_xray import ATTRIBUTES, age_bin, choose_patients
from lightning_dp.data.chest_xray.tables import read_lung_masks, read_nih_table
from lightning_dp.errors import PrivacyConfigError
from tests.data.chest_xray.standins import table

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
ROWS = (
    "1_0.png,Cardiomegaly|Pneumonia,0,1,57,M,PA,2682,2749,0.1,0.1\n"
    "1_1.png,No Finding,1,1,58,M,PA,2682,2749,0.1,0.1\n"
    "2_0.png,Effusion|Hernia,0,2,29,F,PA,2682,2749,0.1,0.1\n"
)


def test_age_bins_are_half_open() -> None:
    ages = np.array([0, 29, 30, 59, 60, 69, 70, 79, 80, 95])
    assert age_bin(ages).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(ATTRIBUTES["age"]) == 5


@pytest.mark.parametrize("packed", [True, False])
def test_the_table_is_read(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress((HEADER + ROWS).encode()) if packed else (HEADER + ROWS).encode())
    found = read_nih_table(path)
    assert found.patient.tolist() == [1, 1, 2]
    assert found.sex.tolist() == [1, 1, 0]
    assert found.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.levels.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_masks_of_two_lungs_are_kept(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    drawn = np.zeros((128, 128), np.uint8)
    drawn[20:100, 10:50] = 127
    one = drawn.copy()
    drawn[20:100, 70:110] = 255
    path = tmp_path / "masks.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("b.png", drawn), ("a.png", one), ("empty.png", 0 * one)):
            stream = io.BytesIO()
            image.fromarray(values).save(stream, "png")
            archive.writestr(f"folder/{name}", stream.getvalue())
        archive.writestr("folder/", "")
    found = read_lung_masks(path)
    assert found.shape == (1, 64, 64)
    np.testing.assert_array_equal(found[0], drawn[::2, ::2] > 0)


@pytest.mark.parametrize("read", [read_nih_table, read_lung_masks])
def test_a_missing_package_is_named_with_its_extra(read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setattr("lightning_dp.optional.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"torchxrayvision.*pip install 'lightning-dp\[data\]'"):
        read()  # type: ignore[operator]


@pytest.mark.skipif(find_spec("torchxrayvision") is None, reason="torchxrayvision is not installed")
@pytest.mark.slow
def test_the_real_files_hold_what_the_documentation_says() -> None:
    found = read_nih_table()
    assert len(found) == 112_120
    assert len(np.unique(found.patient)) == 30_805
    assert read_lung_masks().shape == (401, 64, 64)


def test_a_share_of_the_chosen_patients_has_a_finding_and_shows_it_first() -> None:
    visits = table()
    chosen = choose_patients(visits, 100, 1, np.random.default_rng(1), with_finding=0.3)
    assert len(np.unique(chosen.patient)) == len(chosen) == 100
    assert chosen.labels.any(1).sum() == 30
    whole = choose_patients(visits, 100, 9, np.random.default_rng(1), with_finding=0.3)
    assert set(whole.patient) == set(chosen.patient)
    for patient in np.unique(whole.patient):
        assert (whole.patient == patient).sum() == (visits.patient == patient).sum()


def test_patients_as_they_come_have_the_tables_frequencies() -> None:
    visits = table(4000)
    found = choose_patients(visits, 2000, 1, np.random.default_rng(1), with_finding=None).labels.mean(0)
    first = visits.labels.mean(0)
    assert np.abs(found - first).max() < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_too_many_patients_are_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="ask for fewer"):
        choose_patients(table(50), 49, 1, np.random.default_rng(0), with_finding=0.9)

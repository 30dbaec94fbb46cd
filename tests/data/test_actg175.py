"""ACTG175: the outcome, the groups and the split, from the file and from a stand-in of a few rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_dp.data import ACTG175DataModule
from lightning_dp.data.actg175 import INPUTS, find_actg175, read_actg175

HEADER = ["pidnum", *INPUTS, "cens"]


def stand_in(folder: Path, n: int = 12) -> Path:
    """Rows in the file's form, made up."""
    rows = [HEADER]
    for k in range(n):
        values = dict.fromkeys(INPUTS, k % 2) | {"age": 25 + k, "wtkg": 500, "cd40": 350}
        rows.append([str(k), *(str(values[name]) for name in INPUTS), str(int(k % 4 == 0))])
    path = folder / "ACTG175.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


def test_inputs_are_scaled_by_fixed_numbers_and_levels_are_those_of_the_rows(tmp_path: Path) -> None:
    inputs, labels, levels = read_actg175(stand_in(tmp_path))
    names = list(INPUTS)
    assert inputs[:, names.index("age")] == pytest.approx([(25 + k - 35) / 10 for k in range(12)], abs=1e-6)
    assert inputs[:, names.index("wtkg")].max() == 3.0
    assert labels.tolist() == [1, 0, 0, 0] * 3
    assert levels[:, 0].tolist() == levels[:, 1].tolist() == [0, 1] * 6
    assert levels[:, 2].tolist() == [0] * 5 + [1] * 7


def test_the_split_holds_everybody_once(tmp_path: Path) -> None:
    stand_in(tmp_path)
    data = ACTG175DataModule(batch_size=4, test_size=4, root=tmp_path)
    data.setup()
    train, test = (torch.cat([b[0] for b in loader]) for loader in (data.train_dataloader(), data.test_dataloader()))
    assert (len(train), len(test)) == (8, 4)
    assert len(torch.cat([train, test])[:, 0].unique()) == 12


def test_a_missing_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="give root="):
        find_actg175(tmp_path)
    path = stand_in(tmp_path)
    path.write_text(path.read_text().replace("preanti", "before"))
    with pytest.raises(ValueError, match="no column preanti"):
        ACTG175DataModule(root=tmp_path).prepare_data()
    stand_in(tmp_path).write_text(",".join(HEADER) + "\n" + ",".join(["x"] * len(HEADER)) + "\n")
    with pytest.raises(ValueError, match="value of age that is no number"):
        ACTG175DataModule(root=tmp_path).prepare_data()
    monkeypatch.setattr("lightning_dp.optional.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="data"):
        find_actg175()


def test_the_file_of_lifelines_is_the_trial() -> None:
    try:
        path = find_actg175()
    except ModuleNotFoundError:
        pytest.skip("lifelines is not installed")
    inputs, labels, levels = read_actg175(path)
    assert inputs.shape == (ACTG175DataModule.card.n, 16)
    assert labels.sum() == 521  # 24 % had an event
    assert levels[:, 0].mean() == pytest.approx(0.83, abs=0.005)
    assert all(levels[:, k].max() == len(v) - 1 for k, v in enumerate(ACTG175DataModule.attributes.values()))

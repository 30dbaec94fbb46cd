from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_dp.data.cache import cache_folder, generate_once, progress


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"train/inputs": np.arange(6.0).reshape(2, 3), "n": np.array(self.calls)}


def test_made_once_for_the_same_facts(tmp_path: Path) -> None:
    make = Maker()
    first = generate_once("toy", {"seed": 0, "n": 2}, make, tmp_path)
    again = generate_once("toy", {"n": 2, "seed": 0}, make, tmp_path)
    assert make.calls == 1
    assert first.keys() == again.keys()
    assert all((first[key] == again[key]).all() for key in first)


def test_made_anew_for_other_facts(tmp_path: Path) -> None:
    make = Maker()
    for facts in ({"seed": 0}, {"seed": 1}, {"seed": 0, "version": 2}):
        generate_once("toy", facts, make, tmp_path)
    assert make.calls == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    make = Maker()
    generate_once("toy", {}, make, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    generate_once("toy", {}, make, tmp_path)
    generate_once("toy", {}, make, tmp_path)
    assert make.calls == 2


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_once("toy", {}, stopped, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="LIGHTNING_DP_CACHE"):
        generate_once("toy", {}, Maker(), tmp_path / "file")


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lightning-dp"
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder(tmp_path) == tmp_path


def test_progress_passes_everything_on() -> None:
    assert list(progress(range(3), "counting")) == [0, 1, 2]

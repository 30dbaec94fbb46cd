from __future__ import annotations

import sys

import pytest

from lightning_dp.optional import folder_of, require


def test_what_is_installed_is_returned() -> None:
    assert require("torch.nn", "models", "this test") is sys.modules["torch.nn"]
    assert (folder_of("torch", "models", "this test") / "nn").is_dir()


@pytest.mark.parametrize("find", [require, folder_of])
def test_what_is_missing_is_named_with_its_extra(find: object) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"The viewer needs no_such_package.*pip install 'lightning-dp\[views\]'"
    ):
        find("no_such_package", "views", "The viewer")  # type: ignore[operator]


def test_a_missing_submodule_names_its_package() -> None:
    with pytest.raises(ModuleNotFoundError, match="needs no_such_package,"):
        require("no_such_package.part", "views", "The viewer")


def test_a_fault_inside_an_installed_package_is_not_called_a_missing_one(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import something_it_lacks")  # type: ignore[operator]
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_it_lacks'"):
        require("half_installed", "views", "The viewer")

"""The reader of the emoji packages, on packages of a few pictures in the same form, and on the real ones where they are."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_dp.data.emoji import VENDORS, find_emoji, read_emoji
from lightning_dp.errors import PrivacyConfigError

CATEGORIES = {"Food & Drink": "food-fruit", "Flags": "country-flag", "Component": "skin-tone"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_CACHE", str(tmp_path / "cache"))


def _entry(code: str, **more: Any) -> dict[str, Any]:
    has = {"has_img_google": True, "has_img_twitter": True, "has_img_apple": True}
    return {"unified": code, "image": f"{code.lower()}.png", **has, **more}


def package(folder: Path, vendor: str, per_category: int = 2, size: int = 64) -> Path:
    """An unpacked package with made-up pictures; the first emoji of each category has a skin tone."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pictures = folder / "img" / vendor / "64"
    pictures.mkdir(parents=True)
    entries, k = [], 0
    for category, subcategory in CATEGORIES.items():
        for i in range(per_category):
            k += 1
            code = f"1F3{k:02X}"
            tone = {"skin_variations": {"1F3FB": _entry(f"{code}-1F3FB")}} if i == 0 else {}
            entry = _entry(code, category=category, subcategory=subcategory, short_name=f"name{k}", **tone)
            entries.append(entry)
            rng = np.random.default_rng([k, VENDORS.index(vendor)])
            for one in (entry, *tone.get("skin_variations", {}).values()):
                pixels = rng.integers(0, 256, (size, size, 4), dtype=np.uint8)
                image.fromarray(pixels).save(pictures / one["image"])
    # An emoji that the vendor does not draw, and so has no file.
    absent = {f"has_img_{vendor}": False, "category": "Flags", "subcategory": "flag", "short_name": "undrawn"}
    entries.append(_entry("1F999") | absent)
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def packed(folder: Path, to: Path) -> Path:
    with tarfile.open(to, "w:gz") as archive:
        archive.add(folder, "package")
    return to


def test_pictures_come_with_what_the_package_says_of_them(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    folder = package(tmp_path / "emoji-datasource-google", "google")
    found = read_emoji("google", tmp_path)
    assert len(found) == 9  # three categories of two, one of each with a skin tone; the undrawn one is left out
    assert found.images.shape == (9, 64, 64, 4)
    assert found.images.dtype == np.uint8
    assert list(found.code_point[:3]) == ["1F301", "1F301-1F3FB", "1F302"]
    assert list(found.base[:3]) == ["1F301", "1F301", "1F302"]
    assert list(found.short_name[:3]) == ["name1", "name1", "name2"]
    assert set(zip(found.category, found.subcategory, strict=True)) == set(CATEGORIES.items())
    for code, pixels in zip(found.code_point, found.images, strict=True):
        with image.open(folder / "img" / "google" / "64" / f"{code.lower()}.png") as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture))


def test_vendors_follow_one_another_under_the_same_code_points(tmp_path: Path) -> None:
    for vendor in VENDORS:
        package(tmp_path / "node_modules" / f"emoji-datasource-{vendor}", vendor)
    found = read_emoji(root=tmp_path)
    assert list(found.vendor) == ["google"] * 9 + ["twitter"] * 9
    np.testing.assert_array_equal(found.base[:9], found.base[9:])
    assert not (found.images[:9] == found.images[9:]).all()


def test_packed_and_unpacked_give_the_same_and_the_cache_serves(tmp_path: Path) -> None:
    folder = package(tmp_path / "package", "twitter")
    loose = read_emoji("twitter", tmp_path)
    archive = packed(folder, tmp_path / "emoji-datasource-twitter-16.0.0.tgz")
    for root in (archive, tmp_path):
        tight = read_emoji("twitter", root)
        for name in ("images", "code_point", "base", "category", "vendor"):
            np.testing.assert_array_equal(getattr(tight, name), getattr(loose, name))
    assert len(list((tmp_path / "cache").glob("emoji-twitter-*.npz"))) == 2  # one for each form of the package
    (folder / "img" / "twitter" / "64" / "1f302.png").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of the pictures"):
        read_emoji("twitter", tmp_path)  # a changed package is not taken for the one in the cache


def test_without_root_the_cache_folder_is_looked_in(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"npm pack emoji-datasource-google@16\.0\.0"):
        find_emoji("google")
    folder = package(tmp_path / "package", "google")
    (tmp_path / "cache").mkdir()
    archive = packed(folder, tmp_path / "cache" / "emoji-datasource-google-16.0.0.tgz")
    shutil.rmtree(folder)
    assert find_emoji("google") == archive
    assert len(read_emoji("google")) == 9


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrivacyConfigError, match="proprietary"):
        find_emoji("apple", tmp_path)
    with pytest.raises(PrivacyConfigError, match="no vendor"):
        read_emoji((), tmp_path)
    with pytest.raises(FileNotFoundError, match="npm pack emoji-datasource-twitter"):
        find_emoji("twitter", tmp_path)
    damaged = tmp_path / "emoji-datasource-google-1.0.0.tgz"
    damaged.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="damaged"):
        read_emoji("google", damaged)
    content = io.BytesIO(b"{}")
    with tarfile.open(damaged, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/README.md"), content)
    with pytest.raises(FileNotFoundError, match=r"holds no emoji\.json"):
        read_emoji("google", damaged)
    package(tmp_path / "other" / "package", "google", size=32)
    with pytest.raises(ValueError, match="32 x 32"):
        read_emoji("google", tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("vendor", VENDORS)
def test_real_packages(vendor: str) -> None:
    root = os.environ.get("LIGHTNING_DP_EMOJI")
    if root is None:
        pytest.skip("the emoji packages are not there (LIGHTNING_DP_EMOJI, the folder of npm's .tgz, is not set)")
    found = read_emoji(vendor, root)
    assert found.images.shape == (3786, 64, 64, 4)
    assert len(set(found.base)) <= 1911
    assert len(set(found.category)) == 10

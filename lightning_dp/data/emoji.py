"""The pictures of the npm packages ``emoji-datasource-google`` and ``emoji-datasource-twitter``, as arrays."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_dp.data.cache import cache_folder, generate_once, progress
from lightning_dp.errors import PrivacyConfigError
from lightning_dp.optional import require

__all__ = ("VENDORS", "EmojiImages", "find_emoji", "read_emoji")

#: Vendors whose art may be used: Noto (Google) is under Apache-2.0, Twemoji (Twitter) under CC BY 4.0.
VENDORS = ("google", "twitter")
SIZE = 64
_READER = 1  # to be raised when the arrays of a package change


@dataclass(frozen=True)
class EmojiImages:
    """Pictures with what the package says of them; all arrays have the pictures along axis 0.

    Attributes:
        images: RGBA, uint8 ``(n, 64, 64, 4)``.
        code_point: Code points of the picture, skin tone included, as in ``"1F385-1F3FB"``.
        base: Code points of the entry it belongs to, ``"1F385"``: the same for every skin tone and vendor, hence what a
            split must not cut apart.
        category: ``"Food & Drink"`` and so on.
        subcategory: ``"food-fruit"`` and so on.
        short_name: Name of the entry, ``"santa"``.
        vendor: ``"google"`` or ``"twitter"``.
    """

    images: NDArray[np.uint8]
    code_point: NDArray[np.str_]
    base: NDArray[np.str_]
    category: NDArray[np.str_]
    subcategory: NDArray[np.str_]
    short_name: NDArray[np.str_]
    vendor: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)


def _package(vendor: str) -> str:
    if vendor not in VENDORS:
        raise PrivacyConfigError(
            f"vendor={vendor!r} is not read: choose 'google' (Apache-2.0) or 'twitter' (CC BY 4.0). The art of the other "
            "vendors is proprietary."
        )
    return f"emoji-datasource-{vendor}"


def find_emoji(vendor: str = "google", root: str | Path | None = None) -> Path:
    """The package of one vendor: the ``.tgz`` that ``npm pack`` leaves, or the folder of ``emoji.json``.

    Args:
        vendor: ``"google"`` or ``"twitter"``.
        root: The ``.tgz`` itself; or a folder that holds it, or is it unpacked, or where ``npm install`` was run (or its
            ``node_modules``). None: the cache folder, in the same ways.

    Raises:
        PrivacyConfigError: Another vendor.
        FileNotFoundError: It is not there; the message says how to get it.
    """
    name = _package(vendor)
    place = cache_folder() if root is None else Path(root)
    if place.is_file() and place.name.startswith(name):
        return place
    for folder in (place, place / "package", place / name, place / name / "package", place / "node_modules" / name):
        if (folder / "emoji.json").is_file() and (folder / "img" / vendor / str(SIZE)).is_dir():
            return folder
    packed = sorted(place.glob(f"{name}-*.tgz"))
    if packed:
        return packed[-1]
    raise FileNotFoundError(
        f"there is no package {name} in {place}: run `npm pack {name}@16.0.0` there, or give root= the folder of the "
        ".tgz (or of node_modules)."
    )


class _Files:
    """The files of a package by their names inside it, packed or not."""

    def __init__(self, path: Path, vendor: str) -> None:
        self.path, self.images = path, f"img/{vendor}/{SIZE}/"

    def fingerprint(self) -> str:
        """What changes when the package does."""
        digest = blake2b(digest_size=16)
        if self.path.is_file():
            digest.update(self.path.read_bytes())
        else:
            digest.update((self.path / "emoji.json").read_bytes())
            for file in sorted((self.path / self.images).glob("*.png")):
                digest.update(f"{file.name} ".encode() + file.read_bytes())
        return digest.hexdigest()

    def read(self) -> dict[str, bytes]:
        """``emoji.json`` and the pictures; nothing is unpacked to the disk."""
        if not self.path.is_file():
            pictures = {self.images + file.name: file.read_bytes() for file in (self.path / self.images).glob("*.png")}
            return {"emoji.json": (self.path / "emoji.json").read_bytes(), **pictures}
        found = {}
        try:
            with tarfile.open(self.path, "r:gz") as archive:
                for member in archive:
                    name = member.name.removeprefix("package/")
                    if member.isfile() and (name == "emoji.json" or name.startswith(self.images)):
                        file = archive.extractfile(member)
                        found[name] = b"" if file is None else file.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({error}): fetch it again with npm pack.") from error
        return found


def _entries(text: bytes, vendor: str) -> list[dict[str, Any]]:
    """One entry a picture: that of an emoji, then those of its skin tones."""
    found = []
    for emoji in json.loads(text):
        about = {"base": emoji["unified"]} | {key: emoji[key] for key in ("category", "subcategory", "short_name")}
        for one in (emoji, *emoji.get("skin_variations", {}).values()):
            if one.get(f"has_img_{vendor}"):
                found.append(about | {"code_point": one["unified"], "image": one["image"]})
    return found


def _pixels(name: str, content: bytes) -> NDArray[np.uint8]:
    image = require("PIL.Image", "data", "Reading the emoji pictures")
    with image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    if pixels.shape != (SIZE, SIZE, 4):
        raise ValueError(f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels; expected {SIZE} x {SIZE}.")
    return pixels


def _read(files: _Files, vendor: str) -> Mapping[str, NDArray[Any]]:
    content = files.read()
    if "emoji.json" not in content:
        raise FileNotFoundError(f"{files.path} holds no emoji.json: it is no package {_package(vendor)}.")
    entries = _entries(content["emoji.json"], vendor)
    missing = [one["image"] for one in entries if files.images + one["image"] not in content]
    if missing or not entries:
        raise FileNotFoundError(
            f"{files.path} lacks {len(missing) or 'all'} of the pictures that its emoji.json names"
            f"{', as ' + missing[0] if missing else ''}: fetch it again with npm pack."
        )
    names = [files.images + one["image"] for one in entries]
    images = [_pixels(name, content[name]) for name in progress(names, f"emoji of {vendor}")]
    texts = ("code_point", "base", "category", "subcategory", "short_name")
    return {"images": np.stack(images), **{key: np.array([one[key] for one in entries]) for key in texts}}


def read_emoji(vendors: str | Sequence[str] = VENDORS, root: str | Path | None = None) -> EmojiImages:
    """The pictures of one vendor or of several, one vendor after the other, each in the order of its ``emoji.json``.

    A package is decoded once and kept in the cache.

    Args:
        vendors: Names of vendors, see `VENDORS`.
        root: See :func:`find_emoji`.

    Raises:
        PrivacyConfigError: No vendor, or one that is not read.
        FileNotFoundError: A package is not there, or is not whole.
        ValueError: It is damaged.
        ModuleNotFoundError: pillow is not installed.
    """
    names = [vendors] if isinstance(vendors, str) else list(vendors)
    if not names:
        raise PrivacyConfigError(f"no vendor: choose among {', '.join(VENDORS)}.")
    parts = []
    for vendor in names:
        files = _Files(find_emoji(vendor, root), vendor)
        facts = {"vendor": vendor, "package": files.fingerprint(), "reader": _READER}
        # The default ties the names of this turn of the loop to the function.
        arrays = generate_once(f"emoji-{vendor}", facts, lambda f=files, v=vendor: _read(f, v))  # type: ignore[misc]
        parts.append({**arrays, "vendor": np.full(len(arrays["images"]), vendor)})
    return EmojiImages(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})

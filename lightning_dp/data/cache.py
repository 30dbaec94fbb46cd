"""Data sets that are computed once: kept as one file of arrays, found again by everything that determined them."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

__all__ = ("cache_folder", "generate_once", "progress")

_T = TypeVar("_T")


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where generated data are kept: ``folder``, else ``$LIGHTNING_DP_CACHE``, else ``~/.cache/lightning-dp``.

    ``$XDG_CACHE_HOME`` takes the place of ``~/.cache`` where it is set.
    """
    if folder is not None:
        return Path(folder)
    if own := os.environ.get("LIGHTNING_DP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-dp"


def progress(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """The items, with a progress bar on the terminal (none where the output goes to a file).

    Args:
        items: What to go through.
        what: The words beside the bar.
        total: Number of items, where they cannot be counted.
    """
    yield from tqdm(items, desc=what, total=total, leave=False, disable=None)


def generate_once(
    name: str,
    facts: Mapping[str, Any],
    make: Callable[[], Mapping[str, NDArray[Any]]],
    folder: str | Path | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays that ``make`` returns: read from the cache if they were made before from the same facts, made now if not.

    Two processes that make the same arrays at once do the work twice and disturb each other in nothing: the file appears
    whole or not at all. A damaged file is made again.

    Args:
        name: Name of the data set, for the file.
        facts: All that the arrays depend on, as JSON values: sizes, the seed, and a version to raise when ``make`` changes.
        make: Computes the arrays, as a function of the facts alone.
        folder: See :func:`cache_folder`.

    Returns:
        The arrays by name.

    Raises:
        OSError: The folder cannot be written; the message says how to choose another.
    """
    text = json.dumps(dict(facts), sort_keys=True)
    path = cache_folder(folder) / f"{name}-{blake2b(text.encode(), digest_size=8).hexdigest()}.npz"
    if path.is_file():
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            pass  # cut short, by a full disk for one
    arrays = {key: np.asarray(value) for key, value in make().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError as error:
        raise OSError(
            f"cannot write {name} into {path.parent} ({error}): set LIGHTNING_DP_CACHE to a folder that can be written."
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            save: Any = np.savez  # its types take the names of arrays for options
            save(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return arrays

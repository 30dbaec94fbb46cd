"""Releases that outlive a run: in memory for the same data, and in a checkpoint, as plain tensors and values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_dp.errors import PrivacyError, PrivacyWarning
from lightning_dp.strategies.neural.batches import Template
from lightning_dp.strategies.neural.cache import Releases

__all__ = ("Kept", "load_releases", "save_releases")


class Kept:
    """What was released, of which data, and what a checkpoint brought."""

    def __init__(self) -> None:
        self.releases: Releases | None = None
        self._source: Callable[[], Any] = _gone
        self._saved: dict[str, Any] | None = None

    def get(self) -> Releases:
        """The releases. Raises PrivacyError before there are any."""
        if self.releases is None:
            raise PrivacyError(
                "a training batch was asked for before the samples were released; there is nothing in it yet"
            )
        return self.releases

    def keep(self, releases: Releases, dataset: Any) -> None:
        """Keeps the releases of a data set, and not the data set: it holds raw samples."""
        self.releases = releases
        try:
            self._source = weakref.ref(dataset)
        except TypeError:  # a list, say; the next fit then makes a release of its own
            self._source = _gone

    def are_of(self, dataset: Any, terms: dict[str, Any]) -> bool:
        """Whether the releases are of this very data set, on these terms."""
        return self.releases is not None and self._source() is dataset and self.releases.terms == terms

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Notes what a checkpoint brought, if it did."""
        self._saved = self._saved if saved is None else saved

    def restored(self, template: Template, terms: dict[str, Any], n: int, dtype: torch.dtype) -> Releases | None:
        """What a checkpoint brought, once, if it is what would be released; a warning if it is not."""
        saved, self._saved = self._saved, None
        found = None if saved is None else load_releases(saved, template, terms, n, dtype)
        if saved is not None and found is None:
            rank_zero_warn(
                "the checkpoint holds releases of another layer, upstream, bound, noise or number of samples: they are not "
                "used, and another release is made and charged.",
                category=PrivacyWarning,
            )
        return found


def _gone() -> None:
    return None


def save_releases(releases: Releases, *, with_labels: bool) -> dict[str, Any]:
    """What a checkpoint holds: what has passed the mechanism.

    Args:
        releases: the cache.
        with_labels: whether its labels may leave, being public or randomised. Labels in the clear must not: a checkpoint
            is published more lightly than a data set.
    """
    labels = [[key, value] for key, value in releases.labels.items()] if with_labels else []
    return {"vectors": releases.vectors, "labels": labels, "terms": dict(releases.terms)}


def load_releases(
    saved: dict[str, Any], template: Template, terms: dict[str, Any], n: int, dtype: torch.dtype
) -> Releases | None:
    """The cache that :func:`save_releases` kept, without labels if it kept none; ``None`` if it is not what was asked for."""
    if saved["terms"] != terms or saved["vectors"].shape[1] != n:
        return None
    labels = dict(saved["labels"])
    return Releases(saved["vectors"].to(dtype), labels, template, terms)

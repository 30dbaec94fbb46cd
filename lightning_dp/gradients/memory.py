"""How much memory the engine may use beyond what a plain step needs, and the one temporary that layers share."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

from torch import Tensor

from lightning_dp.errors import PrivacyConfigError

__all__ = ("Memory", "nbytes")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
CHUNK_BYTES = 1 << 22  # temporaries of this size stay in cache; above 32 MiB, each would page-fault anew on CPU
SHARE = (
    0.15  # of what the recorded inputs and the parameters take: what gradients may be held in when nothing else is said
)
LEAST = 1 << 20  # small networks: their gradients may be held whatever the share


class Memory:
    """Decides which units' gradients may be held until they are summed. A limit changes routes, never results.

    A gradient that is held spares its layer a second product in the sum. It may be held if it takes no more than the
    records that it replaces, or if the rest fits the limit.

    Args:
        limit: bytes that held gradients and temporaries may take beyond the records; ``None``: a share of what a plain
            step keeps for its backward pass.

    Raises:
        PrivacyConfigError: for a limit that is not a positive number.
    """

    def __init__(self, limit: int | None = None) -> None:
        whole = isinstance(limit, int) and not isinstance(limit, bool)
        if limit is not None and not (whole and limit > 0):
            raise PrivacyConfigError(f"memory_limit={limit!r} must be a whole number of bytes >= 1, or None")
        self.limit = limit
        _keep_freed_pages()
        self._allowed = 0
        self._held = 0
        self._scratch: Tensor | None = None

    def begin(self, recorded_bytes: int) -> None:
        """Starts a backward pass whose records and parameters take ``recorded_bytes``."""
        self._allowed = max(LEAST, int(SHARE * recorded_bytes)) if self.limit is None else self.limit // 2
        self._held = 0

    @property
    def chunk_bytes(self) -> int:
        """How large one temporary may be."""
        return CHUNK_BYTES if self.limit is None else max(1, min(CHUNK_BYTES, self.limit // 4))

    def hold(self, wanted: int, freed: int) -> bool:
        """Whether ``wanted`` bytes may be held where ``freed`` bytes of records are dropped instead."""
        after = self._held + wanted - freed
        if after > max(self._allowed, self._held):
            return False
        self._held = after
        return True

    def scratch(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the next call or the end of the pass: the one large temporary of the moment."""
        size = math.prod(shape)
        if like.device.type != "cpu":
            return like.new_empty(shape)
        if self._scratch is None or self._scratch.dtype != like.dtype or self._scratch.numel() < size:
            self._scratch = like.new_empty(size)
        return self._scratch[:size].view(shape)

    def end(self) -> None:
        """Ends the pass. Nothing of it lives on into the next forward pass, whose records would come on top of it."""
        self._scratch = None


def _keep_freed_pages() -> None:
    """Lets glibc's allocator keep freed memory for the next step instead of returning it to the system.

    It returns blocks of some size at once, and what lies free at the end of the heap beyond 64 MiB. Every page of either costs
    a fault when it comes back: a third of the step of a small network, 6 % of a transformer's (measured), and
    returning blocks of 4 or 8 MiB costs ResNet-9 4 to 6 %. The most that a process takes grows by 3 to 5 % (single runs).
    Without glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest that it takes
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def nbytes(*tensors: Tensor) -> int:
    """Bytes of the tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
